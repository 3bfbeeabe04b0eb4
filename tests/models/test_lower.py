"""States of a lower layer against those of a whole pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from support.architectures import ARCHITECTURES, VOCAB, build
from support.tiny import make_llama
from tempertilt.models.base import decoder_layers
from tempertilt.models.lower import lower_states

NAMES = ("llama", "mistral", "gemma2", "gemma3", "gpt2", "opt", "qwen2_moe", "bloom", "mamba", "falcon_h1", "jamba")
PROMPTS = [np.random.default_rng(i).integers(3, VOCAB, n).tolist() for i, n in enumerate((5, 12, 1, 9, 12))]


def whole_pass(model: Any, prompt: list[int]) -> list[torch.Tensor]:
    """`(n, d)` states after each layer, by hooks on all of them."""
    states: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[0])

    handles = [layer.register_forward_hook(keep) for layer in decoder_layers(model)]
    with torch.no_grad():
        model(input_ids=torch.tensor([prompt]), use_cache=False)
    for handle in handles:
        handle.remove()
    return states


@pytest.mark.parametrize("name", NAMES)
def test_states_are_those_of_a_whole_pass(name: str) -> None:
    assert name in ARCHITECTURES
    model = build(name)
    whole = [whole_pass(model, prompt) for prompt in PROMPTS]
    for layer in range(1, len(decoder_layers(model)) + 1):
        for expected, states in zip(whole, lower_states(model, PROMPTS, layer, batch_tokens=30)):
            torch.testing.assert_close(states, expected[layer - 1], atol=2e-5, rtol=1e-4)


def test_layers_above_do_not_run_and_no_hook_is_left() -> None:
    model, ran = make_llama(), []
    handles = [layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(decoder_layers(model))]
    lower_states(model, PROMPTS[:1], 2)
    assert ran == [0, 1]
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert lower_states(model, [], 2) == []
