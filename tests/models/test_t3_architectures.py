"""One matrix over tiny random models of many architectures: forward, generation and features against a direct evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from support.architectures import ARCHITECTURES, VOCAB, build, random_head
from support.oracle import Oracle
from tempertilt.data.examples import Example
from tempertilt.errors import ModelError
from tempertilt.fitting.features import FeatureConfig
from tempertilt.fitting.workers import batch_features
from tempertilt.models.base import check_unlearnable
from tempertilt.models.t3 import T3ForCausalLM


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
        distribution = model(input_ids=torch.tensor(prompts)).logits.double().log_softmax(-1)
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(distribution[row], oracle.distribution(prompt), atol=2e-4, rtol=1e-4)

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
