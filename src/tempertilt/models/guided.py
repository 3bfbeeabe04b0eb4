"""`GuidedLM`: a frozen causal LM under a guidance, and what the guidance remembers of each sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from transformers.cache_utils import Cache

from tempertilt.errors import TemperTiltError
from tempertilt.guidance.guidance import Context, Observation
from tempertilt.guidance.pooling import Follow, Memory, scan
from tempertilt.guidance.reply import Reply
from tempertilt.models.base import body_of, decoder_layers
from tempertilt.models.cache import check_continues, memory_layer
from tempertilt.models.frozen import BasePass, FrozenLM


class Guide(Protocol):
    """What turns the base's logits into guided ones: a `Guidance`, or a `Composition` of several."""

    @property
    def layer(self) -> int | None:
        """Number of decoder layers below the states that gates read; None without gates."""

    @property
    def replies(self) -> tuple[Reply, ...]:
        """What is said instead of an answer; none where it is guessed."""

    @property
    def needs_memory(self) -> bool:
        """Whether the guided distribution depends on more than the present position's states."""

    def check_fits(self, hidden_size: int, vocab_size: int, num_layers: int) -> None:
        """Raise an error unless it fits a base model of this shape."""

    def observe(self, last: Tensor, lower: Tensor | None, input_ids: Tensor | None = None) -> Observation:
        """What to remember of new positions."""

    def follows(self, input_ids: Tensor | None) -> tuple[Follow, ...]:
        """What counts the tokens of replies."""

    def read(self, memory: Memory) -> Context:
        """What a memory says of its positions."""

    def guide(
        self, logits: Tensor, last: Tensor | None, pooled: Tensor | None, gate: Tensor | None, *, reply: Tensor | None = None
    ) -> Tensor:
        """Guided logits."""


class GuidedLM(FrozenLM):
    """A frozen causal LM under a guidance.

    The memory of a sequence is kept beside the keys and values, as one more layer of the cache. Threads may share an instance,
    and several instances may stand on one base.

    Attributes:
        guidance: what changes the logits.
    """

    guidance: Guide

    def check_fits(self) -> None:
        """Raise an error unless heads, gates and replies fit the base."""
        rows, width = self.base.get_output_embeddings().weight.shape
        layers = 0 if self.guidance.layer is None else len(decoder_layers(self.base))
        self.guidance.check_fits(width, rows, layers)

    def watched(self) -> Mapping[str, nn.Module]:
        """The body, and the layer that the input gates read."""
        modules: dict[str, nn.Module] = {"last": body_of(self.base)}
        if self.guidance.layer is not None:
            modules["lower"] = decoder_layers(self.base)[self.guidance.layer - 1]
        return modules

    def check_cache(self, cache: Any) -> None:
        """Raise `TemperTiltError` for a cache that holds positions which the guidance has not seen."""
        if self.guidance.needs_memory:
            check_continues(cache)

    def new_logits(self, logits: Tensor, step: BasePass) -> Tensor:
        """Guided logits, float32."""
        _, context = self.remember(step.states, step.inputs.get("input_ids"), step.mask, step.cache)
        kept = Context(*(None if values is None else step.kept(values) for values in context))
        return self.guided(logits, step.kept(step.states["last"]), kept)

    def guided(self, logits: Tensor, last: Tensor, context: Context) -> Tensor:
        """Guided logits `(..., V)` from the base's, the last states `(..., d)` and what else the guidance reads there."""
        return self.guidance.guide(logits, last, context.pooled, context.gate, reply=context.reply)

    def paired_logits(self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Base and guided logits of whole sequences from one pass of the base model.

        Args:
            input_ids, attention_mask: `(B, T)`, padded on either side.
            keep: `(B, T)` bool, the positions whose logits are wanted, N in all.

        Returns:
            Base logits `(N, V)` and guided logits `(N, V)`, rows in row-major order of `keep`.
        """
        logits, last, context = self.at(input_ids, attention_mask, keep)
        return logits, self.guided(logits, last, context)

    def at(self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Context]:
        """Base logits, last states, and what else the guidance reads, at the positions `keep`."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        sliced = self._supports_logits_to_keep()
        output, states = self.run_base(inputs | ({"logits_to_keep": keep} if sliced else {}))
        logits = output.logits if sliced else output.logits[keep]
        _, context = self.remember(states, input_ids, attention_mask, None)
        parts = (None if values is None else values[keep.to(values.device)] for values in context)
        return logits, states["last"][keep.to(states["last"].device)], Context(*parts)

    def remember(
        self, states: Mapping[str, Tensor], input_ids: Tensor | None, mask: Tensor | None, cache: Any
    ) -> tuple[Observation | None, Context]:
        """What the new positions `(B, n)` show, and what the guidance reads there; what the cache holds is continued."""
        if not self.guidance.needs_memory:
            return None, Context(None, None, None)
        new = self.guidance.observe(states["last"], states.get("lower"), input_ids)
        follows = self.guidance.follows(input_ids)
        if cache is None:
            memory = scan(new.projected, mask, new.events, follows)
        elif isinstance(cache, Cache):
            memory = memory_layer(cache).advance(new.projected, mask, new.events, follows)
        else:
            raise TemperTiltError(
                f"{type(self.base).__name__} keeps its state in a {type(cache).__name__}, beside which ours can't be kept; "
                "generate with use_cache=False, or fit with pooling='last' and no gate"
            )
        return new, self.guidance.read(memory)
