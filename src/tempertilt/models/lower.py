"""States of a lower layer alone: the layers above it do not run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tempertilt.data.batches import plan_batches
from tempertilt.models.base import body_of, decoder_layers
from tempertilt.models.frozen import watch


class _Reached(Exception):
    """The layer above has been called: what was wanted is there."""


@contextmanager
def stopped_before(layer: torch.nn.Module) -> Iterator[None]:
    """Inside, a pass ends where it would run `layer`, in every thread."""

    def stop(*_: Any) -> None:
        raise _Reached

    handle = layer.register_forward_pre_hook(stop)
    try:
        yield
    except _Reached:
        pass
    finally:
        handle.remove()


@torch.inference_mode()
def lower_states(model: Any, prompts: Sequence[Sequence[int]], layer: int, batch_tokens: int = 2048) -> list[Tensor]:
    """States after `layer` decoder layers of all tokens of each prompt `(n, d)`, of the model's type, on CPU.

    Args:
        model: a causal LM.
        prompts: token ids.
        layer: 1 to the number of layers; the layers above it do not run.
        batch_tokens: padded tokens in one pass.
    """
    layers = decoder_layers(model)
    out: dict[int, Tensor] = {}
    for batch in plan_batches(prompts, batch_tokens):
        width = max(len(prompts[i]) for i in batch)
        ids = torch.tensor([[*prompts[i], *[0] * (width - len(prompts[i]))] for i in batch], device=model.device)
        mask = torch.tensor([[1] * len(prompts[i]) + [0] * (width - len(prompts[i])) for i in batch], device=model.device)
        stopped = stopped_before(layers[layer]) if layer < len(layers) else nullcontext()
        with watch(layers[layer - 1]) as capture, stopped:
            body_of(model)(input_ids=ids, attention_mask=mask, use_cache=False)
        assert capture.states is not None
        out |= {i: capture.states[row, : len(prompts[i])].cpu() for row, i in enumerate(batch)}
    return [out[i] for i in range(len(prompts))]
