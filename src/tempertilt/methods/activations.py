"""Hidden states of records after a decoder layer, and a model that changes them there: what methods of activations share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tempertilt.data.batches import pad_batch, plan_batches
from tempertilt.data.examples import Example
from tempertilt.methods.assistant import shared_copy
from tempertilt.models.base import decoder_layers, last_hidden_state
from tempertilt.models.frozen import watch

BATCH_TOKENS = 1024


def layer_at(base: Any, depth: float) -> int:
    """The number, from 0, of the decoder layer at a share of the depth; 1 is the last."""
    return max(0, round(depth * len(decoder_layers(base))) - 1)


@torch.no_grad()
def mean_states(base: Any, examples: Sequence[Example], layer: int) -> Tensor:
    """Mean state after a decoder layer over the positions that predict each example's answer, `(N, d)` float32."""
    rows = torch.zeros(len(examples), base.config.get_text_config().hidden_size)
    for chosen in plan_batches(examples, BATCH_TOKENS):
        batch = pad_batch([examples[i] for i in chosen], base.device)
        with watch(decoder_layers(base)[layer]) as capture:
            base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        assert capture.states is not None
        weights = batch.predicting.to(capture.states.device).float()
        means = (capture.states.float() * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True)
        rows[chosen] = means.cpu()
    return rows


class ChangedLayer:
    """A model that shares its base's tensors, and hands on other states after one layer.

    Args:
        base: left as it is.
        layer: number of the decoder layer, from 0.

    Attributes:
        model: the copy; outside of `__call__` it is the base.
    """

    def __init__(self, base: Any, layer: int) -> None:
        self.model = shared_copy(base)
        self._changes = threading.local()
        decoder_layers(self.model)[layer].register_forward_hook(self._hand_on)

    def _hand_on(self, _module: Any, _inputs: Any, output: Any) -> Any:
        change: Callable[[Tensor], Tensor] | None = getattr(self._changes, "change", None)
        if change is None:
            return output
        states = change(last_hidden_state(output))
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def __call__(self, change: Callable[[Tensor], Tensor], run: Callable[[Any], Tensor]) -> Tensor:
        """What `run` makes of the model while the present thread's states `(B, n, d)` go through `change`."""
        self._changes.change = change
        try:
            return run(self.model)
        finally:
            self._changes.change = None
