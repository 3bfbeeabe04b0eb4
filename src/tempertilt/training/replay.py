"""LoRA on the upper layers of a causal LM, and the frozen lower layers run only once.

The lower layers have no trained weights, so the hidden states that they hand up never change. They are computed once for
every example and replayed while the upper layers train.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tempertilt.data.batches import Batch, pad_batch, plan_batches
from tempertilt.data.examples import Example
from tempertilt.errors import ModelError
from tempertilt.models.base import body_of, last_hidden_state

log = logging.getLogger("tempertilt")


def with_lora(
    model: Any, layers: nn.ModuleList, first: int, last: int | None = None, *, rank: int, alpha: float, dropout: float = 0.0
) -> Any:
    """A PEFT model with LoRA matrices on all linear modules of `layers[first:last]`, which add nothing before they train.

    Raises:
        ModelError: there is no linear module in them.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    upper = {id(module) for layer in layers[first:last] for module in layer.modules() if isinstance(module, (nn.Linear, Conv1D))}
    names = [name for name, module in model.named_modules() if id(module) in upper]
    if not names:
        raise ModelError(f"{type(model).__name__} has no linear module in its upper layers to put LoRA on")
    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)


def hidden_states(model: Any, batch: Batch) -> Tensor:
    """Last hidden states `(B, T, d)`."""
    return last_hidden_state(body_of(model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False))


def all_logits(model: Any, batch: Batch) -> Tensor:
    """Logits `(B, T, V)`."""
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits  # type: ignore[no-any-return]


@torch.no_grad()
def has_plain_output(model: Any, probe: Example) -> bool:
    """Whether logits are the output layer of the last hidden state, with no scaling or capping after it."""
    batch = pad_batch([probe], model.device)
    plain = model.get_output_embeddings()(hidden_states(model, batch))
    return torch.allclose(plain, all_logits(model, batch), rtol=1e-4, atol=1e-4)


class _Stand(nn.Module):
    """In the place of a frozen layer: hands on `states` if it has some, else its input. Attributes are the layer's own."""

    def __init__(self, layer: nn.Module, returns_tuple: bool) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not registered: its weights are not this module's
        self.returns_tuple = returns_tuple
        self.states: Tensor | None = None

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        out = hidden_states if self.states is None else self.states
        return (out,) if self.returns_tuple else out

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)


@torch.no_grad()
def returns_tuple(model: Any, layers: nn.ModuleList, probe: Example) -> bool:
    """Whether decoder layers return tuples, or their states alone."""
    seen: dict[str, Any] = {}
    hook = layers[0].register_forward_hook(lambda _m, _i, output: seen.__setitem__("output", output))
    try:
        hidden_states(model, pad_batch([probe], model.device))
    finally:
        hook.remove()
    return isinstance(seen["output"], tuple)


@contextmanager
def skipped(layers: nn.ModuleList, start: int, returns_tuple: bool) -> Iterator[None]:
    """Inside, `layers[start:]` hand on what they are given."""
    originals = list(layers)[start:]
    try:
        for i, layer in enumerate(originals, start):
            layers[i] = _Stand(layer, returns_tuple)
        yield
    finally:
        for i, layer in enumerate(originals, start):
            layers[i] = layer


class Replay:
    """The states that enter the first trained layer, one tensor `(T, d)` for each example, and their replay."""

    def __init__(self, layers: nn.ModuleList, first: int, states: list[Tensor], returns_tuple: bool) -> None:
        self.layers, self.first, self.states = layers, first, states
        self.stands = [_Stand(layer, returns_tuple) for layer in layers[:first]]

    @classmethod
    def of(cls, model: Any, layers: nn.ModuleList, first: int, examples: Sequence[Example], max_gib: float) -> Replay | None:
        """Run the lower layers over all examples; None, said in the log, if they are too large or can't be replayed."""
        width = model.config.get_text_config().hidden_size
        size = sum(map(len, examples)) * width * torch.empty(0, dtype=model.dtype).element_size() / 2**30
        if size > max_gib:
            log.warning(
                "the lower layers' states take %.1f GiB, more than max_cache_gib %.1f: not cached",
                size,
                max_gib,
            )
            return None
        states, returns_tuple = _lower_states(model, layers, first, examples)
        replay = cls(layers, first, states, returns_tuple)
        if not replay.is_exact(model, examples[:2]):
            log.warning("%s gives other numbers when its lower layers are replayed: not cached", type(model).__name__)
            return None
        return replay

    @contextmanager
    def batch(self, indices: Sequence[int]) -> Iterator[None]:
        """Inside, the lower layers hand up the cached states of these examples, right-padded with zeros."""
        self.stands[0].states = nn.utils.rnn.pad_sequence([self.states[i] for i in indices], batch_first=True)
        originals = [self.layers[i] for i in range(self.first)]
        try:
            for i, stand in enumerate(self.stands):
                self.layers[i] = stand
            yield
        finally:
            for i, layer in enumerate(originals):
                self.layers[i] = layer
            self.stands[0].states = None

    @torch.no_grad()
    def is_exact(self, model: Any, probes: Sequence[Example]) -> bool:
        """Whether replaying gives the logits of the whole model, at real positions, but for rounding.

        States were rounded in batches of another shape. On SmolLM2 in bfloat16 that moves logits by up to 4 eps of their length;
        to replay one layer too low moves them by 32 or more (benchmarks/bfloat16.py).
        """
        batch = pad_batch(probes, model.device)
        real = batch.attention_mask.bool()
        whole = all_logits(model, batch)[real]
        try:
            with self.batch(range(len(probes))):
                replayed = all_logits(model, batch)[real]
        except (TypeError, AttributeError, RuntimeError, IndexError, ValueError):
            log.debug("replaying failed", exc_info=True)
            return False
        error = (whole.float() - replayed.float()).norm() / whole.float().norm()
        return bool(error <= max(1e-3, 12 * torch.finfo(whole.dtype).eps))


@torch.no_grad()
def _lower_states(model: Any, layers: nn.ModuleList, first: int, examples: Sequence[Example]) -> tuple[list[Tensor], bool]:
    """What the last frozen layer gives for each example `(T, d)`, and whether layers return tuples."""
    seen: dict[str, Any] = {}
    tuples = returns_tuple(model, layers, examples[0])
    hook = layers[first - 1].register_forward_hook(lambda _m, _i, output: seen.__setitem__("output", output))
    states: dict[int, Tensor] = {}
    try:
        with skipped(layers, first, tuples):
            for batch in plan_batches(examples, 2048):
                hidden_states(model, pad_batch([examples[i] for i in batch], model.device))
                hidden = seen["output"][0] if tuples else seen["output"]
                for row, i in enumerate(batch):
                    states[i] = hidden[row, : len(examples[i])].clone()
    finally:
        hook.remove()
    return [states[i] for i in range(len(examples))], tuples
