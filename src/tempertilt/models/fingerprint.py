"""A name for the weights of a model, the same on every device and in every float type."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from tempertilt.models.merging import PeftAdapter

FINGERPRINT_SAMPLES = 2048  # numbers read from each weight tensor
MERGED = "_tempertilt_merged"  # attribute of a merged model: its weights' fingerprint, and the one before merging


def fingerprint(model: Any) -> str:
    """A name for the weights: 32 hex digits, equal for the same weights in float32, bfloat16 or on another device.

    Reads up to 2048 evenly spaced numbers of every weight, rounded to bfloat16: enough to tell fine-tuned, merged and
    edited models apart, and cheap for large ones. Quantised weights count as another model. A model into which `load_base` has
    merged a PEFT adapter is known by the weights of base and adapter, since what merging gives depends on the arithmetic at hand.
    """
    weights = fingerprint_of_weights(model)
    merged, before = getattr(model, MERGED, (None, ""))
    return before if weights == merged else weights


def fingerprint_of_weights(model: Any) -> str:
    """The fingerprint of a model's weights as they are, merged or not."""
    return fingerprint_of_samples(
        model.config.model_type, {name: weight_sample(name, weight) for name, weight in model.named_parameters()}
    )


def fingerprint_with_peft(base: str, adapter: PeftAdapter) -> str:
    """The fingerprint of a base, whose own is `base`, with a PEFT adapter: of its weights and options."""
    samples = {name: weight_sample(name, weight) for name, weight in adapter.weights.items()}
    return fingerprint_of_samples(f"{base} {adapter.recipe}", samples)


def mark_as_merged(model: Any, before: str) -> None:
    """Have `fingerprint` give `before` for a merged model, as long as its weights are these."""
    setattr(model, MERGED, (fingerprint_of_weights(model), before))


def fingerprint_of_samples(model_type: str, samples: dict[str, bytes]) -> str:
    """The fingerprint of a model of which `weight_sample` gave the samples, by the weights' names."""
    digest = hashlib.sha256(json.dumps([model_type, FINGERPRINT_SAMPLES]).encode())
    for _, sample in sorted(samples.items()):
        digest.update(sample)
    return digest.hexdigest()[:32]


def weight_sample(name: str, weight: Tensor) -> bytes:
    """What a fingerprint takes of one weight: its name, its shape, and some of its numbers in bfloat16."""
    flat = weight.detach().reshape(-1)
    step = max(1, flat.numel() // FINGERPRINT_SAMPLES)
    sample = flat[::step][:FINGERPRINT_SAMPLES]
    if sample.is_floating_point():
        sample = sample.to("cpu", torch.bfloat16).view(torch.int16)
    return f"{name}{tuple(weight.shape)}".encode() + sample.cpu().numpy().tobytes()
