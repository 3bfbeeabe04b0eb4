"""The mathematics of temper-then-tilt on tensors: pure functions, one for each equation.

Source: Block, Mohri, Mokhtari, Shakkottai, "Temper-Then-Tilt" (ICML 2026, arXiv 2602.10217).

A classifier gives, for every next token `v`, the log-odds `l(v) = logit P(retain | context, v)` under a balanced training
prior. The guided next-token law is

    log p_hat(v) = z(v) / T  +  s * w(l(v))  -  log Z,        w(l) = log p_retain(v) / p(v) + constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from tempertilt.errors import ConfigError

Pooling = Literal["mean", "last"]


def check_pooling(pooling: str) -> Pooling:
    """Return `pooling`, how hidden states become a context; raise `ConfigError` if it is not one of the known kinds."""
    if pooling not in get_args(Pooling):
        raise ConfigError(f"pooling is {pooling!r}; valid are {', '.join(get_args(Pooling))}")
    return pooling  # type: ignore[return-value]


def check_temperature(temperature: float) -> float:
    """Return `temperature` (dimensionless, > 0; T > 1 flattens); raise `ConfigError` if it is not a positive number."""
    if not (isinstance(temperature, (int, float)) and math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"temperature is {temperature!r}; valid is a number > 0 (1 = no tempering, the paper uses 2.5)")
    return float(temperature)


def check_guidance_scale(guidance_scale: float) -> float:
    """Return `guidance_scale` (dimensionless, >= 0; 0 = no tilt); raise `ConfigError` if it is negative or no number."""
    if not (isinstance(guidance_scale, (int, float)) and math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise ConfigError(f"guidance_scale is {guidance_scale!r}; valid is a number >= 0 (0 = no tilt, the paper uses 1)")
    return float(guidance_scale)


def check_forget_prior(forget_prior: float) -> float:
    """Return `forget_prior` (the share of forget text in the base's law, in (0, 1)); raise `ConfigError` otherwise."""
    if not (isinstance(forget_prior, (int, float)) and 0 < forget_prior < 1):
        raise ConfigError(f"forget_prior is {forget_prior!r}; valid is a number in (0, 1); 0.5 gives the paper's tilt")
    return float(forget_prior)


@dataclass(frozen=True)
class TiltConfig:
    """The settings of the guided law; all can be changed after loading."""

    temperature: float = field(default=2.5, metadata={"help": "T: the base's logits are divided by it (1 = no tempering)"})
    guidance_scale: float = field(default=1.0, metadata={"help": "s: weight of the tilt (0 = no tilt)"})
    forget_prior: float = field(default=0.5, metadata={"help": "share of forget text in the base's law; 0.5 = the paper's tilt"})

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_guidance_scale(self.guidance_scale)
        check_forget_prior(self.forget_prior)


def log_retain_weight(log_odds: Tensor, forget_prior: float = 0.5) -> Tensor:
    """`w(l) = -log((1 - g) + g * exp(-l))`, the log of p_retain / p for balanced log-odds `l` and forget share `g`.

    At `g = 1/2` this is `log sigmoid(l) + log 2`, the paper's tilt up to a constant. The constant makes `w(0) = 0`: a
    token of which the classifier knows nothing keeps its logit.

    Args:
        log_odds: any shape, nats.
        forget_prior: `g`, in (0, 1).

    Returns:
        Same shape as `log_odds`, nats; at most `-log(1 - g)`.
    """
    if forget_prior == 0.5:
        return F.logsigmoid(log_odds) + math.log(2.0)
    retain = torch.full_like(log_odds, math.log1p(-forget_prior))
    return -torch.logaddexp(retain, math.log(forget_prior) - log_odds)


def guided_logits(
    logits: Tensor,
    log_odds: Tensor,
    token_ids: Tensor | None = None,
    *,
    temperature: float = 1.0,
    guidance_scale: float = 1.0,
    forget_prior: float = 0.5,
    openness: Tensor | None = None,
) -> Tensor:
    """Temper, then tilt: `z / (1 + (T - 1) g) + g s w(l)` in float32, not normalised (logits, as a model returns them).

    Args:
        logits: base logits `(..., V)`.
        log_odds: `(..., K)`, nats, one column for each of `token_ids`; tokens that are not listed have log-odds 0.
        token_ids: `(K,)` distinct token ids, or None when `K = V`.
        temperature: `T > 0`.
        guidance_scale: `s >= 0`.
        forget_prior: see `log_retain_weight`.
        openness: `g` of the gate `(...)`, in [0, 1]; where it is 0 the logits are the base's. None is 1 everywhere.

    Returns:
        `(..., V)` float32. `log_softmax` of it is the guided law.
    """
    tempered = logits.float()
    tilt = log_retain_weight(log_odds.float(), forget_prior)
    if guidance_scale != 1.0:
        tilt = tilt * guidance_scale
    if openness is not None:
        tempered = tempered / (1.0 + (temperature - 1.0) * openness.unsqueeze(-1))
        tilt = tilt * openness.unsqueeze(-1)
    elif temperature != 1.0:
        tempered = tempered / temperature
    if token_ids is None:
        return tempered + tilt
    return tempered.index_add(-1, token_ids, tilt)
