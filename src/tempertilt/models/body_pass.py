"""One pass of a model's body over sequences in a batch; what all of them begin with, such as a system message, is read once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from tempertilt.data.examples import shared_prefix
from tempertilt.models.base import body_of, decoder_layers, last_hidden_state
from tempertilt.models.cache import can_share
from tempertilt.models.frozen import watch
from tempertilt.models.limits import depends_on_batch

LEAST_ROWS, LEAST_TOKENS = 4, 8  # of a batch and of its beginning, for a pass of its own to pay


class BodyStates(NamedTuple):
    """States `(B, T, d)` of the last layer, None where it did not run; and of the lower layer that was asked for."""

    last: Tensor | None
    lower: Tensor | None


class _Reached(Exception):
    """The layer above has been called: what was wanted is there."""


@contextmanager
def _stopped_before(layer: torch.nn.Module) -> Iterator[None]:
    """Inside, a pass ends where it would run `layer`, in every thread."""

    def stop(*_: Any) -> None:
        raise _Reached

    handle = layer.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def body_pass(
    model: Any, input_ids: Tensor, attention_mask: Tensor, lower: int | None = None, *, only_lower: bool = False
) -> BodyStates:
    """States of sequences, which are padded on the right.

    Args:
        model: a causal LM.
        input_ids, attention_mask: `(B, T)`, on the model's device.
        lower: number of decoder layers after which states are wanted, too.
        only_lower: the layers above that do not run.
    """
    shortest = int(attention_mask.sum(1).min())
    common = min(shared_prefix(input_ids.tolist()), shortest - 1)  # a token is left of each
    cache = _empty_cache(model) if common >= LEAST_TOKENS and len(input_ids) >= LEAST_ROWS else None
    if cache is None:
        return _run(model, lower, only_lower, input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    options = {"cache": cache, "use_cache": True}
    first = input_ids[:1, :common]
    start = _run(model, lower, only_lower, input_ids=first, attention_mask=torch.ones_like(first), **options)
    cache.batch_repeat_interleave(len(input_ids))
    rest = _run(model, lower, only_lower, input_ids=input_ids[:, common:], attention_mask=attention_mask, **options)
    return BodyStates(*(None if part is None else _joined(part, own) for part, own in zip(start, rest)))


def _joined(start: Tensor, rest: Tensor | None) -> Tensor:
    assert rest is not None
    return torch.cat([start.expand(len(rest), -1, -1), rest], 1)


def _run(model: Any, lower: int | None, only_lower: bool, **inputs: Any) -> BodyStates:
    last, capture = None, None
    with ExitStack() as stack:
        if lower is not None:
            layers = decoder_layers(model)
            capture = stack.enter_context(watch(layers[lower - 1]))
            if only_lower and lower < len(layers):
                stack.enter_context(_stopped_before(layers[lower]))
        with suppress(_Reached):
            last = last_hidden_state(body_of(model)(**inputs))
    return BodyStates(last, None if capture is None else capture.states)


def _empty_cache(model: Any) -> DynamicCache | None:
    """A cache that can begin many sequences; None where the model has layers of another kind, or is split over processes."""
    is_split = hasattr(next(model.parameters()), "full_tensor")  # by FSDP: all processes make the same passes
    if is_split or depends_on_batch(model):
        return None
    try:
        cache = DynamicCache(config=model.config)
    except (AttributeError, TypeError, ValueError):
        return None
    return cache if cache.layers and can_share(cache) else None
