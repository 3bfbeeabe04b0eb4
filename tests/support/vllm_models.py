"""Tiny random unlearned models for vLLM, and the directories of their bases and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from support.gates import gates_for
from tempertilt.guidance.gate import Gates
from tempertilt.guidance.head import GuidanceHead
from tempertilt.integrations.vllm import hf_overrides
from tempertilt.models.t3 import T3ForCausalLM

VOCAB, NEW = 160, 40
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_KV = {name: value for name, value in COMMON.items() if name not in ("num_key_value_heads", "head_dim")} | {
    "num_attention_heads": 2
}
WIDE = COMMON | {"hidden_size": 128}
MOE = COMMON | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}

ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", COMMON),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", COMMON | {"tie_word_embeddings": True}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 2, "n_positions": 256, "initializer_range": 0.15}
        | {"bos_token_id": 1, "eos_token_id": 2},
    ),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", WIDE),
    "mistral": ("MistralForCausalLM", "MistralConfig", COMMON | {"sliding_window": 16}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        COMMON
        | {"final_logit_softcapping": 10.0, "attn_logit_softcapping": 20.0, "sliding_window": 16, "query_pre_attn_scalar": 32},
    ),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", COMMON | {"sliding_window": 16, "num_hidden_layers": 7}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", WIDE),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", WIDE),
    "granite": (
        "GraniteForCausalLM",
        "GraniteConfig",
        WIDE | {"logits_scaling": 0.5, "embedding_multiplier": 3.0},
    ),
    "cohere": ("CohereForCausalLM", "CohereConfig", WIDE | {"logit_scale": 2.0}),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", WIDE),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", WIDE),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", NO_KV),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {"vocab_size": VOCAB, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
        | {"max_position_embeddings": 256, "word_embed_proj_dim": 64, "init_std": 0.15, "pad_token_id": 0},
    ),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": VOCAB, "hidden_size": 64, "n_layer": 3, "n_head": 2, "initializer_range": 0.15}
        | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}
RENAMED = ("mixtral", "olmoe", "gpt_neox")  # some weights have other names in checkpoints than in transformers: not checked
LOOSE = {"bloom": 3e-3}  # vLLM's own Bloom, without an adapter, is 1.2e-3 from that of transformers
BAR = ("llama", "qwen3", "gpt2")
SAMPLING = {"temperature": 0, "max_tokens": NEW, "logprobs": 5, "ignore_eos": True, "detokenize": False}


def tiny(name: str, seed: int = 7, **changes: Any) -> Any:
    model_class, config_class, options = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**options | changes)
    return getattr(transformers, model_class)(config).eval()


def prompts(count: int = 12, longest: int = 60) -> list[list[int]]:
    """Prompts of 3 to `longest` tokens; every other one begins as the one before."""
    generator = torch.Generator().manual_seed(3)
    found: list[list[int]] = []
    for i in range(count):
        length = 3 + i * (longest - 3) // (count - 1)
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        found.append((found[-1] + ids)[:length] if i % 2 else ids)
    return found


def tiny_unlearned(name: str, pooling: str, gate: bool, directory: Path, **options: Any) -> tuple[T3ForCausalLM, Path, Path]:
    """A tiny model with a random adapter, and the directories of its base and of the adapter."""
    base = tiny(name, **options)
    text = base.config.get_text_config()
    d, vocab_size = text.hidden_size, text.vocab_size
    generator = torch.Generator().manual_seed(11)
    head = GuidanceHead(d, 12, torch.randperm(vocab_size, generator=generator)[: vocab_size * 3 // 4])
    with torch.no_grad():
        head.A.normal_(std=d**-0.5, generator=generator)
        head.B.normal_(std=2.0, generator=generator)
    found = gates_for(base, prompts(), turn_ids=range(3, 11)) if gate else None
    if found is not None:  # as they are read back, in float16
        found = Gates.from_tensors(found.tensors(), found.settings)
    tilt = {"temperature": 1.7, "guidance_scale": 0.9, "forget_prior": 0.4}
    model = T3ForCausalLM.from_base(base, head, gates=found, pooling=pooling, name=str(directory / "base"), **tilt)
    base.save_pretrained(directory / "base")
    model.save_pretrained(directory / "adapter")
    return model, directory / "base", directory / "adapter"


def unlearned(name: str, pooling: str, gate: bool, directory: Path) -> tuple[T3ForCausalLM, dict[str, Any]]:
    """A tiny model with a random adapter, and what vLLM needs to load the same from disk."""
    model, base, adapter = tiny_unlearned(name, pooling, gate, directory)
    overrides = hf_overrides(str(adapter), ARCHITECTURES[name][0], check_base=name not in RENAMED)
    return model, {"model": str(base), "dtype": "float32", "hf_overrides": overrides, "skip_tokenizer_init": True}
