"""The name of a model's weights, against a direct evaluation."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from support.tiny import make_llama
from tempertilt.models.fingerprint import fingerprint, fingerprint_of_weights


def directly(model: Any) -> str:
    """By numpy alone: float32 is rounded to the nearest bfloat16, ties to even."""
    digest = hashlib.sha256(b'["llama", 2048]')
    for name, weight in sorted(model.named_parameters()):
        numbers = weight.detach().float().numpy().ravel()
        bits = numbers[:: max(1, len(numbers) // 2048)][:2048].view(np.uint32).astype(np.uint64)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        digest.update(f"{name}{tuple(weight.shape)}".encode() + rounded.tobytes())
    return digest.hexdigest()[:32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_hash_of_samples_of_every_weight(dtype: torch.dtype) -> None:
    model = make_llama(vocab_size=640)  # more than 2048 numbers in some weights, less in others
    expected = directly(model)
    assert fingerprint(model.to(dtype)) == fingerprint_of_weights(model) == expected


def test_another_weight_is_another_name() -> None:
    model = make_llama()
    before = fingerprint(model)
    with torch.no_grad():
        model.model.norm.weight[0] += 0.1
    assert fingerprint(model) != before
