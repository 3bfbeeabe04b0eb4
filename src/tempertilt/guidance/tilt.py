"""The mathematics of temper-then-tilt on tensors: pure functions, one for each equation.

Source: Block, Mohri, Mokhtari, Shakkottai, "Temper-Then-Tilt" (ICML 2026, arXiv 2602.10217).

A classifier gives, for every next token `v`, the log-odds `l(v) = logit P(retain | context, v)` under a balanced training
prior. A gate gives `g` in [0, 1]. The guided next-token distribution is

    log p_hat(v) = z(v) / (1 + (T - 1) g)  +  s * g * w(l(v))  -  log Z,        w(l) = log p_retain(v) / p(v) + constant.

Of several parts, each with T_i, s_i, g_i and l_i of its own, the weights add and the largest temperature of the open ones counts:

    log p_hat(v) = z(v) / max_{i: g_i > 0} (1 + (T_i - 1) g_i)  +  sum_i s_i * g_i * w_i(l_i(v))  -  log Z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from tempertilt.config.options import Options, option

Pooling = Literal["mean", "last"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


@dataclass(frozen=True)
class TiltConfig(Options):
    """The settings of the guided distribution; all can be changed after loading."""

    temperature: float = option(
        2.5, "T: the base's logits are divided by it", ge=1e-3, le=1e6, hint="1 = no tempering, the paper uses 2.5"
    )
    guidance_scale: float = option(1.0, "s: weight of the tilt", ge=0, le=1e6, hint="0 = no tilt, the paper uses 1")
    forget_prior: float = option(
        0.5, "share of forget text where the gate is open", gt=0, le=1, hint="0.5 = the paper's tilt, 1 = the log-odds themselves"
    )

    @property
    def is_neutral(self) -> bool:
        """Whether the guided distribution is the base's, whatever the classifier says."""
        return self.temperature == 1.0 and self.guidance_scale == 0.0


def temper(logits: Tensor, temperature: float, gate: Tensor | None = None) -> Tensor:
    """`z / (1 + (T - 1) g)`, float32.

    Args:
        logits: `(..., V)`.
        temperature: `T > 0`.
        gate: `g` `(...)` in [0, 1]; None is 1 everywhere.
    """
    tempered = logits.float()
    if gate is not None:
        return tempered / _divisor(temperature, gate).unsqueeze(-1)
    return tempered / temperature if temperature != 1.0 else tempered


def _divisor(temperature: float, gate: Tensor) -> Tensor:
    return 1.0 + (temperature - 1.0) * gate


def tilt_weights(log_odds: Tensor, forget_prior: float = 0.5, gate: Tensor | None = None) -> Tensor:
    """`g w(l)` with `w(l) = -log((1 - q) + q exp(-l))`, the log of p_retain / p for balanced log-odds and forget share `q`.

    At `q = 1/2` this is `log sigmoid(l) + log 2`, the paper's tilt up to a constant. The constant makes `w(0) = 0`: a token
    of which the classifier knows nothing keeps its logit.

    Args:
        log_odds: `(..., K)`, nats.
        forget_prior: `q`, in (0, 1]; 1 gives the log-odds themselves.
        gate: `g` `(...)` in [0, 1]; None is 1 everywhere.

    Returns:
        Same shape as `log_odds`, float32, nats; at most `-log(1 - q)`.
    """
    weights = log_odds = log_odds.float()
    if forget_prior == 1.0:
        pass
    elif forget_prior == 0.5:
        weights = F.logsigmoid(log_odds) + math.log(2.0)
    else:
        retain = torch.full_like(log_odds, math.log1p(-forget_prior))
        weights = -torch.logaddexp(retain, math.log(forget_prior) - log_odds)
    return weights if gate is None else weights * gate.unsqueeze(-1)


def guided_logits(
    logits: Tensor, log_odds: Tensor, token_ids: Tensor | None, tilt: TiltConfig, gate: Tensor | None = None
) -> Tensor:
    """Temper, then tilt: float32, not normalised (logits, as a model returns them).

    Args:
        logits: base logits `(..., V)`.
        log_odds: `(..., K)`, nats, one column for each of `token_ids`; tokens that are not listed have log-odds 0.
        token_ids: `(K,)` distinct token ids, or None when `K = V`.
        gate: `g` `(...)` in [0, 1]; where it is 0 the logits are the base's. None is 1 everywhere.

    Returns:
        `(..., V)`. `log_softmax` of it is the guided distribution.
    """
    return _add_weights(temper(logits, tilt.temperature, gate), log_odds, token_ids, tilt, gate)


def _add_weights(tempered: Tensor, log_odds: Tensor, token_ids: Tensor | None, tilt: TiltConfig, gate: Tensor | None) -> Tensor:
    weights = tilt_weights(log_odds, tilt.forget_prior, gate)
    if tilt.guidance_scale != 1.0:
        weights = weights * tilt.guidance_scale
    return tempered + weights if token_ids is None else tempered.index_add(-1, token_ids, weights)


class PartTerms(NamedTuple):
    """What one of several parts adds to the guided logits; the arguments of `guided_logits`."""

    log_odds: Tensor
    token_ids: Tensor | None
    tilt: TiltConfig
    gate: Tensor


def composed_logits(logits: Tensor, parts: Sequence[PartTerms]) -> Tensor:
    """Temper by the largest temperature of the open parts, then add the weights of all, in their order: float32 `(..., V)`.

    Where one part is open, these are its `guided_logits`, bit for bit; where none is, the base's.
    """
    divisors = [torch.where(part.gate > 0, _divisor(part.tilt.temperature, part.gate), 0.0) for part in parts]
    largest = torch.stack(divisors).amax(0)
    guided = logits.float() / torch.where(largest > 0, largest, 1.0).unsqueeze(-1)
    for part in parts:
        guided = _add_weights(guided, *part)
    return guided


def guided_columns(base: Tensor, rest: Tensor, log_odds: Tensor, tilt: TiltConfig) -> tuple[Tensor, Tensor]:
    """Guided log-probabilities of the tokens that are tilted, and of all others together; the scale is 1.

    Args:
        base: `(n, K)` log-probabilities of the K tokens under the base, nats.
        rest: `(n,)` log sum p^(1/T) of all others under the base.
        log_odds: `(n, K)`, nats.
        tilt: temperature and prior.

    Returns:
        `(n, K)` and `(n,)`, nats.
    """
    tilted = base / tilt.temperature + tilt_weights(log_odds, tilt.forget_prior)
    normaliser = torch.logaddexp(tilted.logsumexp(-1), rest)
    return tilted - normaliser[:, None], rest - normaliser


@dataclass(frozen=True)
class TargetTerms:
    """What the guided log-probability of N target tokens needs at any guidance scale; small, as only K tokens are tilted.

    Attributes:
        tilted: `(N, K)` tempered logits of the tilted tokens.
        weights: `(N, K)` their weights.
        neutral: `(N,)` log-sum-exp of the tempered logits of all other tokens.
        target: `(N,)` tempered logits of the targets.
        target_weight: `(N,)` their weights; 0 where a target is not tilted.
        base: `(N,)` log-probabilities of the targets under the base, nats.
    """

    tilted: Tensor
    weights: Tensor
    neutral: Tensor
    target: Tensor
    target_weight: Tensor
    base: Tensor

    def log_probs(self, guidance_scale: float) -> Tensor:
        """Guided log-probabilities `(N,)` of the targets, nats."""
        normaliser = torch.logaddexp((self.tilted + guidance_scale * self.weights).logsumexp(-1), self.neutral)
        return self.target + guidance_scale * self.target_weight - normaliser


def target_terms(
    logits: Tensor,
    log_odds: Tensor,
    token_ids: Tensor,
    targets: Tensor,
    rows: Tensor,
    tilt: TiltConfig,
    gate: Tensor | None = None,
) -> TargetTerms:
    """The `TargetTerms` of base logits `(N, V)`, log-odds `(N, K)` of `token_ids (K,)` and targets `(N,)`; on CPU.

    Args:
        rows: `(N,)` the columns of the targets among `token_ids`, -1 for none.
        tilt: its scale does not matter.
        gate: `(N,)`, or None.
    """
    logits = logits.float()
    tempered, weights = temper(logits, tilt.temperature, gate), tilt_weights(log_odds, tilt.forget_prior, gate)
    own_weight = weights.gather(-1, rows.clamp(min=0)[:, None])[:, 0] * (rows >= 0)
    parts = (
        tempered[:, token_ids],
        weights,
        tempered.index_fill(-1, token_ids, -torch.inf).logsumexp(-1),
        tempered.gather(-1, targets[:, None])[:, 0],
        own_weight,
        logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1),
    )
    return TargetTerms(*(part.cpu() for part in parts))
