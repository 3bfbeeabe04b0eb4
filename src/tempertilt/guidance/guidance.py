"""One object between a base model's states and its guided logits: head, gate, tilt and pooling of an adapter.

transformers, vLLM, calibration and the playground hold it; none of them computes a weight, a temperature or a normaliser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tempertilt.errors import ConfigError
from tempertilt.guidance.gate import EvidenceGate
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.tilt import POOLINGS, Pooling, TiltConfig, guided_logits, target_terms, temper
from tempertilt.guidance.tilt import TargetTerms as TargetTerms


class Observation(NamedTuple):
    """What new positions add to the memory of a sequence.

    Attributes:
        projected: `(..., r)` projections of the last hidden states; r is 0 where they are not pooled.
        evidence: `(...)` of each token by itself, float32; None without a gate.
    """

    projected: Tensor
    evidence: Tensor | None


@dataclass(frozen=True)
class Distributions:
    """Log-probabilities of the next token, `(k, V)` each: of the base, tempered only, and guided."""

    base: Tensor
    tempered: Tensor
    guided: Tensor


class Guidance(nn.Module):
    """Head, gate and settings of an adapter.

    Args:
        head: log-odds of the next token.
        gate: where to temper and tilt; None is everywhere.
        tilt: temperature, scale and prior; can be replaced at any time.
        pooling: "mean" (causal running mean) or "last".

    Raises:
        ConfigError: the pooling is unknown.
    """

    def __init__(
        self, head: GuidanceHead, gate: EvidenceGate | None = None, tilt: TiltConfig | None = None, pooling: str = "mean"
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f"pooling is {pooling!r}; must be one of {', '.join(POOLINGS)}")
        self.head, self.gate, self.tilt = head, gate, tilt or TiltConfig()
        self.pooling: Pooling = pooling  # type: ignore[assignment]

    @property
    def rank(self) -> int:
        """Numbers of a position that are pooled; 0 where the head reads the present position alone."""
        return self.head.rank if self.pooling == "mean" else 0

    @property
    def needs_memory(self) -> bool:
        """Whether the guided distribution depends on more than the present position's states."""
        return self.rank > 0 or self.gate is not None

    @property
    def is_neutral(self) -> bool:
        """Whether the guided distribution is the base's, bit for bit."""
        return self.tilt.is_neutral

    def check_fits(self, hidden_size: int, vocab_size: int, num_layers: int) -> None:
        """Raise `ConfigError` unless head and gate fit a base model of this shape."""
        last = int(self.head.token_ids[-1])
        if self.head.hidden_size != hidden_size or last >= vocab_size:
            raise ConfigError(
                f"the head is for hidden size {self.head.hidden_size} and token ids up to {last}; the base model has hidden size "
                f"{hidden_size} and {vocab_size} tokens"
            )
        if self.gate is not None and (self.gate.hidden_size != hidden_size or self.gate.layer >= num_layers):
            raise ConfigError(
                f"the gate is for hidden size {self.gate.hidden_size} after {self.gate.layer} layers; the base model has hidden "
                f"size {hidden_size} and {num_layers} layers"
            )

    def observe(self, last: Tensor, lower: Tensor | None) -> Observation:
        """What to remember of new positions.

        Args:
            last: `(..., d)` last hidden states.
            lower: `(..., d)` states after the gate's layer; None without a gate.
        """
        evidence = self.gate.evidence(lower.to(self.device)) if self.gate is not None and lower is not None else None
        return Observation(self.head.project(last.to(self.device))[..., : self.rank], evidence)

    def gate_values(self, evidence: Tensor | None) -> Tensor | None:
        """`g` in [0, 1] of evidence `(...)`; None without a gate."""
        return None if self.gate is None or evidence is None else self.gate.value(evidence)

    def guide(
        self, logits: Tensor, last: Tensor | None, pooled: Tensor | None, gate: Tensor | None, tilt: TiltConfig | None = None
    ) -> Tensor:
        """Guided logits `(..., V)` float32.

        Args:
            logits: base logits `(..., V)`; returned as they are where the tilt is neutral.
            last: last hidden states `(..., d)`, where they are not pooled.
            pooled: pooled projections `(..., r)`, where they are.
            gate: `g` `(...)`, None without a gate.
            tilt: instead of the adapter's own.
        """
        tilt = tilt or self.tilt
        if tilt.is_neutral:
            return logits
        gate = None if gate is None else gate.to(logits.device)
        return guided_logits(logits, self._log_odds(last, pooled).to(logits.device), self._token_ids(logits), tilt, gate)

    def log_odds(self, last: Tensor | None, pooled: Tensor | None) -> Tensor:
        """Log-odds `(..., K)` of the head's tokens, nats; arguments as of `guide`."""
        return self._log_odds(last, pooled)

    def distributions(
        self, logits: Tensor, log_odds: Tensor, gate: Tensor | None, tilt: TiltConfig | None = None
    ) -> Distributions:
        """Base, tempered and guided log-probabilities of base logits `(k, V)`, log-odds `(k, K)` and `g` `(k,)`."""
        tilt = tilt or self.tilt
        gate = None if gate is None else gate.to(logits.device)
        guided = guided_logits(logits, log_odds.to(logits.device), self._token_ids(logits), tilt, gate)
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

    def _log_odds(self, last: Tensor | None, pooled: Tensor | None) -> Tensor:
        if not self.rank:
            assert last is not None, "the head reads the last states"
            pooled = self.head.project(last.to(self.head.A.device))
        assert pooled is not None, "the head reads pooled projections"
        return self.head(pooled)  # type: ignore[no-any-return]

    def _token_ids(self, logits: Tensor) -> Tensor | None:
        everything = len(self.head.token_ids) == logits.shape[-1]
        return None if everything else self.head.token_ids.to(logits.device)
