"""Tiny random models of many architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from tempertilt.guidance.head import GuidanceHead

VOCAB = 120
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = COMMON | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
NO_KV = {name: value for name, value in COMMON.items() if name != "num_key_value_heads"}
SSM: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}

ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", COMMON),
    "mistral": ("MistralForCausalLM", "MistralConfig", COMMON | {"sliding_window": 6, "head_dim": 8}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", COMMON),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", COMMON | {"head_dim": 8}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        COMMON | {"head_dim": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "sliding_window": 6},
    ),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", COMMON | {"head_dim": 8, "sliding_window": 6, "num_hidden_layers": 7}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.15}
        | {"bos_token_id": 1, "eos_token_id": 2},
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", COMMON),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {"vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
        | {"max_position_embeddings": 128, "word_embed_proj_dim": 16, "init_std": 0.2, "pad_token_id": 0},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", NO_KV),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", MOE),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", MOE | {"head_dim": 8}),
    "granite": ("GraniteForCausalLM", "GraniteConfig", COMMON | {"logits_scaling": 0.25, "embedding_multiplier": 3.0}),
    "cohere": ("CohereForCausalLM", "CohereConfig", COMMON | {"logit_scale": 2.0}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", COMMON),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", COMMON),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.15},
    ),
    "mamba": ("MambaForCausalLM", "MambaConfig", SSM),
    "mamba2": ("Mamba2ForCausalLM", "Mamba2Config", SSM | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        "FalconH1Config",
        COMMON
        | {"head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
    ),
    "jamba": (
        "JambaForCausalLM",
        "JambaConfig",
        COMMON
        | {"num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    ),
}  # fmt: skip


def build(name: str) -> Any:
    model_class, config_class, options = ARCHITECTURES[name]
    if not hasattr(transformers, model_class):
        pytest.skip(f"this version of transformers has no {model_class}")
    torch.manual_seed(0)
    return getattr(transformers, model_class)(getattr(transformers, config_class)(**options)).eval()


def random_head(model: Any, seed: int = 1) -> GuidanceHead:
    """Large random weights on every other token."""
    head = GuidanceHead(model.get_output_embeddings().weight.shape[1], 4, range(3, VOCAB, 2))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.A.normal_(generator=generator)
        head.B.normal_(generator=generator)
    return head
