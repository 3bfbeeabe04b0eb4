"""One object between a base model's states and its guided logits: head, gates, tilt and pooling of an adapter.

transformers, vLLM, calibration and the playground hold it; none of them computes a weight, a temperature or a normaliser.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tempertilt.errors import ConfigError
from tempertilt.guidance.gate import Evidence, Gates
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.pooling import Follow, Memory
from tempertilt.guidance.reply import Reply, reply_logits
from tempertilt.guidance.tilt import POOLINGS, PartTerms, Pooling, TiltConfig, guided_logits, target_terms, temper
from tempertilt.guidance.tilt import TargetTerms as TargetTerms


class Observation(NamedTuple):
    """What new positions add to the memory of a sequence.

    Attributes:
        projected: `(..., r)` projections of the last hidden states; r is 0 where they are not pooled.
        events: `(..., 5)` bool, see `Gates.events`; None without gates.
        evidence: of each token by itself; None without gates.
    """

    projected: Tensor
    events: Tensor | None
    evidence: Evidence | None


class Context(NamedTuple):
    """What the guided distribution depends on beside the present position's states, each None where it does not.

    Attributes:
        pooled: projections `(..., r)`.
        gate: values `g` `(...)`.
        reply: `(...)` the token of the reply that is next, -1 where none is.
    """

    pooled: Tensor | None
    gate: Tensor | None
    reply: Tensor | None


@dataclass(frozen=True)
class Distributions:
    """Log-probabilities of the next token, `(k, V)` each: of the base, tempered only, and guided."""

    base: Tensor
    tempered: Tensor
    guided: Tensor


class Guidance(nn.Module):
    """Head, gates, reply and settings of an adapter.

    Args:
        head: log-odds of the next token.
        gates: where to temper and tilt; None is everywhere.
        tilt: temperature, scale and prior; can be replaced at any time.
        pooling: "mean" (causal running mean) or "last".
        reply: said where a gate is open; None = drawn from the tempered and tilted distribution. Can be replaced at any time.

    Raises:
        ConfigError: the pooling is unknown, or there is a reply without gates.
    """

    def __init__(
        self,
        head: GuidanceHead,
        gates: Gates | None = None,
        tilt: TiltConfig | None = None,
        pooling: str = "mean",
        reply: Reply | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f"pooling is {pooling!r}; must be one of {', '.join(POOLINGS)}")
        self.head, self.gates, self.tilt = head, gates, tilt or TiltConfig()
        self.reply: Reply | None = None
        self.pooling: Pooling = pooling  # type: ignore[assignment]
        self.set_reply(reply)

    def set_reply(self, reply: Reply | None) -> None:
        """Say `reply` where a gate is open; `ConfigError` without gates."""
        if reply is not None and self.gates is None:
            raise ConfigError("the adapter has no gate, so a reply would be said everywhere; fit with --gate, or --reply guess")
        self.reply = None if reply is None else reply.to(self.device)

    @property
    def rank(self) -> int:
        """Numbers of a position that are pooled; 0 where the head reads the present position alone."""
        return self.head.rank if self.pooling == "mean" else 0

    @property
    def gate_shape(self) -> tuple[int, ...] | None:
        """What the shape of gate values ends with after the positions': one number each; None without gates."""
        return None if self.gates is None else ()

    @property
    def layer(self) -> int | None:
        """Number of decoder layers below the states that the gates read; None without gates."""
        return None if self.gates is None else self.gates.layer

    @property
    def needs_memory(self) -> bool:
        """Whether the guided distribution depends on more than the present position's states."""
        return self.rank > 0 or self.gates is not None

    def check_fits(self, hidden_size: int, vocab_size: int, num_layers: int) -> None:
        """Raise `ConfigError` unless head and gates, or `AdapterError` unless the reply fits a base model of this shape."""
        if self.reply is not None:
            self.reply.check_fits(vocab_size)
        last = int(self.head.token_ids[-1])
        if self.head.hidden_size != hidden_size or last >= vocab_size:
            raise ConfigError(
                f"the head is for hidden size {self.head.hidden_size} and token ids up to {last}; the base model has hidden size "
                f"{hidden_size} and {vocab_size} tokens"
            )
        gates = self.gates
        if gates is not None and (gates.hidden_size != hidden_size or gates.layer >= num_layers):
            raise ConfigError(
                f"the gates are for hidden size {gates.hidden_size} and read after {gates.layer} layers; the base model has "
                f"hidden size {hidden_size} and {num_layers} layers"
            )

    def observe(self, last: Tensor, lower: Tensor | None, input_ids: Tensor | None = None) -> Observation:
        """What to remember of new positions.

        Args:
            last: `(..., d)` last hidden states.
            lower: `(..., d)` states after the gates' layer; None without gates.
            input_ids: `(...)` of the positions; None where there are none.
        """
        projected = self.head.project(last.to(self.device))[..., : self.rank]
        if self.gates is None or lower is None:
            return Observation(projected, None, None)
        evidence = self.gates.evidence(last, lower, input_ids)
        return Observation(projected, self.gates.events(evidence), evidence)

    @property
    def replies(self) -> tuple[Reply, ...]:
        """The reply, if there is one."""
        return () if self.reply is None else (self.reply,)

    def follows(self, input_ids: Tensor | None) -> tuple[Follow, ...]:
        """What the memory needs to count the tokens of the reply among new `input_ids` `(B, n)`; nothing without a reply."""
        return () if self.reply is None else (partial(self.reply.follow, input_ids),)

    def read(self, memory: Memory) -> Context:
        """What a memory says of its positions."""
        pooled = memory.means if self.rank else None
        if self.gates is None:
            return Context(pooled, None, None)
        if self.reply is None or memory.ends is None:
            return Context(pooled, self.gates.value(memory.position, memory.latest), None)
        gate = self.gates.value(memory.position - self.reply.said(memory.ends), memory.latest)
        return Context(pooled, gate, torch.where(gate > 0, self.reply.next_tokens(memory.ends), -1))

    def guide(
        self,
        logits: Tensor,
        last: Tensor | None,
        pooled: Tensor | None,
        gate: Tensor | None,
        tilt: TiltConfig | None = None,
        reply: Tensor | None = None,
    ) -> Tensor:
        """Guided logits `(..., V)` float32.

        Args:
            logits: base logits `(..., V)`; returned as they are where the tilt is neutral and there is no reply.
            last: last hidden states `(..., d)`, where they are not pooled.
            pooled: pooled projections `(..., r)`, where they are.
            gate: `g` `(...)`, None without a gate.
            tilt: instead of the adapter's own.
            reply: `(...)` the token of the reply that is next, -1 where none is; None without a reply.
        """
        tilt = tilt or self.tilt
        if not tilt.is_neutral:
            gate = None if gate is None else gate.to(logits.device)
            log_odds = self.log_odds(last, pooled).to(logits.device)
            logits = guided_logits(logits, log_odds, self._token_ids(logits), tilt, gate)
        return logits if reply is None else reply_logits(logits, reply)

    def terms(self, logits: Tensor, last: Tensor | None, pooled: Tensor | None, gate: Tensor) -> PartTerms:
        """What it adds to base logits `(..., V)` as one of several parts; arguments as of `guide`."""
        log_odds = self.log_odds(last, pooled).to(logits.device)
        return PartTerms(log_odds, self._token_ids(logits), self.tilt, gate.to(logits.device))

    def log_odds(self, last: Tensor | None, pooled: Tensor | None) -> Tensor:
        """Log-odds `(..., K)` of the head's tokens, nats; arguments as of `guide`."""
        if not self.rank:
            assert last is not None, "the head reads the last states"
            pooled = self.head.project(last.to(self.head.A.device))
        assert pooled is not None, "the head reads pooled projections"
        return self.head(pooled)  # type: ignore[no-any-return]

    def distributions(
        self,
        logits: Tensor,
        log_odds: Tensor,
        gate: Tensor | None,
        tilt: TiltConfig | None = None,
        reply: Tensor | None = None,
    ) -> Distributions:
        """Base, tempered and guided log-probabilities of base logits `(k, V)`, log-odds `(k, K)`, `g` and reply `(k,)`."""
        tilt = tilt or self.tilt
        gate = None if gate is None else gate.to(logits.device)
        guided = guided_logits(logits, log_odds.to(logits.device), self._token_ids(logits), tilt, gate)
        guided = guided if reply is None else reply_logits(guided, reply)
        tempered = temper(logits, tilt.temperature, gate)
        return Distributions(*(part.float().log_softmax(-1) for part in (logits, tempered, guided)))

    def target_terms(self, logits: Tensor, log_odds: Tensor, targets: Tensor, gate: Tensor | None) -> TargetTerms:
        """What the guided log-probability of `targets (N,)` needs at any scale; see `tilt.target_terms`."""
        token_ids = self.head.token_ids.to(logits.device)
        rows = self.head.rows_of(targets.to(self.head.token_ids.device)).to(logits.device)
        gate = None if gate is None else gate.to(logits.device)
        return target_terms(logits, log_odds.to(logits.device), token_ids, targets, rows, self.tilt, gate)

    @property
    def device(self) -> torch.device:
        """Where the head's weights are."""
        return self.head.A.device

    def _token_ids(self, logits: Tensor) -> Tensor | None:
        everything = len(self.head.token_ids) == logits.shape[-1]
        return None if everything else self.head.token_ids.to(logits.device)
