"""One matrix over tiny random models of many architectures: forward, generation and features against a direct evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from oracle import Oracle
from tempertilt.base import check_unlearnable
from tempertilt.data.examples import Example
from tempertilt.errors import ModelError
from tempertilt.features import FeatureConfig, batch_features
from tempertilt.head import GuidanceHead
from tempertilt.modeling import T3ForCausalLM

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


def random_prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, length).tolist() for length in lengths]


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


GREEDY = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": 0, "eos_token_id": None}


def base_is_exact_when_left_padded(model: Any, prompts: list[list[int]]) -> bool:
    options = GREEDY | {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
    together = model.generate(**left_padded(prompts), **options).logits[0]
    with torch.no_grad():
        alone = torch.stack([model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in prompts])
    return torch.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_forward_features_and_generation(name: str) -> None:
    base = build(name)
    head = random_head(base)
    model = T3ForCausalLM.from_base(base, head, temperature=1.7, guidance_scale=0.8)
    oracle = Oracle(base, head, 1.7, 0.8)
    prompts = random_prompts([9, 9, 9])
    with torch.no_grad():
        law = model(input_ids=torch.tensor(prompts)).logits.double().log_softmax(-1)
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(law[row], oracle.law(prompt), atol=2e-4, rtol=1e-4)

    examples = [Example(np.array(prompt[:n], np.int32), np.arange(n) >= 4, "d", "s", 0) for prompt, n in zip(prompts, (9, 7, 8))]
    features, targets, _ = batch_features(base, examples, FeatureConfig())
    expected = torch.cat([oracle.contexts(example.input_ids.tolist())[1][3:-1] for example in examples])
    torch.testing.assert_close(features.double(), expected, atol=1e-4, rtol=1e-4)
    assert targets.tolist() == [token for example in examples for token in example.input_ids[4:].tolist()]

    greedy = [oracle.greedy(prompt, 10) for prompt in prompts]
    out = model.generate(torch.tensor(prompts), attention_mask=torch.ones(3, 9, dtype=torch.long), **GREEDY)
    assert out.tolist() == greedy
    uncached = model.generate(torch.tensor(prompts), attention_mask=torch.ones(3, 9, dtype=torch.long), use_cache=False, **GREEDY)
    assert uncached.tolist() == greedy
    with model.disable():
        plain = model.generate(torch.tensor(prompts), **GREEDY)
    assert torch.equal(plain, base.generate(torch.tensor(prompts), **GREEDY))
    assert plain.tolist() != greedy


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_left_padding_beams_and_static_caches(name: str) -> None:
    base = build(name)
    head = random_head(base)
    model = T3ForCausalLM.from_base(base, head, temperature=1.7, guidance_scale=0.8)
    prompts = random_prompts([5, 11, 8])
    exact = base_is_exact_when_left_padded(base, prompts)
    assert exact or name in ("mamba", "mamba2", "falcon_h1", "jamba"), "attention models are exact when padded on the left"
    if exact:
        oracle = Oracle(base, head, 1.7, 0.8)
        out = model.generate(**left_padded(prompts), **GREEDY)
        assert [row[-len(prompt) - 10 :] for row, prompt in zip(out.tolist(), prompts)] == [oracle.greedy(p, 10) for p in prompts]
    same = {"input_ids": torch.tensor(random_prompts([7, 7])), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    beams = GREEDY | {"num_beams": 3, "num_return_sequences": 2}
    cached, uncached = (model.generate(**same, use_cache=use_cache, **beams) for use_cache in (True, False))
    assert torch.equal(cached, uncached)
    static = GREEDY | {"cache_implementation": "static"}
    try:
        base_static = base.generate(**same, **static)
    except (ValueError, NotImplementedError, AttributeError, TypeError, RuntimeError):
        return  # the base model has no static cache
    if torch.equal(base_static, base.generate(**same, **GREEDY)):
        assert torch.equal(model.generate(**same, **static), model.generate(**same, **GREEDY))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_rejected_drafts_leave_no_trace(name: str) -> None:
    base = build(name)
    model = T3ForCausalLM.from_base(base, random_head(base), temperature=1.7, guidance_scale=0.8)
    prompt = random_prompts([6])[0] * 3  # repeats, so that drafts are found
    inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
    lookup = GREEDY | {"prompt_lookup_num_tokens": 3}
    try:
        base.generate(**inputs, **lookup)
    except Exception as error:  # the base model can't roll back: its own error is what the user sees, not a wrong text
        with pytest.raises(type(error)):
            model.generate(**inputs, **lookup)
        return
    assert torch.equal(model.generate(**inputs, **lookup), model.generate(**inputs, **GREEDY))


def refused() -> dict[str, Callable[[], Any]]:
    bert = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    t5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return {
        "T5ForConditionalGeneration": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**t5)),
        "BertLMHeadModel": lambda: transformers.BertLMHeadModel(transformers.BertConfig(is_decoder=True, **bert)),
        "RobertaForCausalLM": lambda: transformers.RobertaForCausalLM(transformers.RobertaConfig(is_decoder=True, **bert)),
        "BertModel": lambda: transformers.BertModel(transformers.BertConfig(**bert)),
    }


@pytest.mark.parametrize("name", list(refused()))
def test_what_can_not_work_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelError, match=name):
        check_unlearnable(refused()[name]().eval())
