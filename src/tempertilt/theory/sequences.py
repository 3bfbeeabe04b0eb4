"""Tempered guidance token by token (Section 7): the rule, what it guarantees, and one memorised token."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from tempertilt.errors import DataError
from tempertilt.theory.checks import (
    Array,
    check_at_least,
    check_positive,
    check_risk,
    check_samples,
    check_share,
    check_tempering,
    check_values,
    same_shape,
)


def guided_token_logits(logits: ArrayLike, log_retain_prob: ArrayLike, temperature: float = 1.0) -> Array:
    """`l / T + log f(h, .)`: rule (7.1), not normalised. `log f`, not the log-odds, which target another distribution.

    Args:
        logits: next-token logits of the base `(..., V)`.
        log_retain_prob: log of the prefix classifier's P(retain | h, token) `(..., V)`.
        temperature: `T >= 1`.

    Raises:
        ConfigError: T is below 1.
        DataError: shapes differ or a value is NaN.
    """
    base = check_values(logits, "logits", finite=False)
    tilt = check_values(log_retain_prob, "log_retain_prob", finite=False)
    same_shape(base, tilt, "logits", "log_retain_prob")
    return base / check_tempering(temperature) + tilt


def token_retain_error_bound(
    excess_risk_per_position: ArrayLike, gamma: float, temperature: float, vocab_size: int, tempering_bias: ArrayLike = 0.0
) -> float:
    """Theorem 6(a, b): a bound of `KL(p_r || p_hat^(T))` over whole sequences, nats.

    At T = 1: `sum_t delta_t / (1 - gamma)`. Above: `sum_t bias_t + (delta_t + sqrt(delta_t/2) + V^(1-1/T)
    (delta_t/2)^min(1/2, 1/T)) / (1 - gamma)`. The factor of V is a worst case over unlikely tokens.

    Args:
        excess_risk_per_position: `delta_t (L,)`, nats, of the prefix classifier under the base's prefixes.
        gamma: share of forget data.
        temperature: `T >= 1`.
        vocab_size: V.
        tempering_bias: `E_{h ~ p_r} B_r(T; h)` for each position `(L,)`, or their sum; not used at T = 1, where it is 0.

    Raises:
        ConfigError: gamma, T or V is out of range.
        DataError: a delta_t is negative or not finite.
    """
    deltas = check_samples(excess_risk_per_position, "excess_risk_per_position")
    if (deltas < 0).any():
        raise DataError(f"excess_risk_per_position has the value {deltas.min():g}; must be >= 0")
    gamma, t = check_share(gamma), check_tempering(temperature)
    size = check_at_least(vocab_size, 2, "vocab_size")
    if t == 1:
        return float(deltas.sum()) / (1 - gamma)
    steps = deltas + np.sqrt(deltas / 2) + size ** (1 - 1 / t) * (deltas / 2) ** min(0.5, 1 / t)
    return float(np.sum(tempering_bias)) + float(steps.sum()) / (1 - gamma)


def local_forget_error_bound(
    delta: float, retain_prob: float, forget_sup: float, entropy: float, temperature: float, kappa: float
) -> float:
    """Theorem 6(c): at a history h whose retain and forget continuations have disjoint supports, a bound of `F_t(h)`.

    `e^kappa (delta / gamma_h) (gamma_h H / f*)^(1/T) e^(-(1-1/T) Ent)` with `gamma_h = 1 - f*(h)`. Plain guidance pays
    `1 / f*(h)`, which is huge inside a memorised continuation; tempering pays its T-th root.

    Args:
        delta: `delta_t(h)`, nats: excess risk of the prefix classifier over the next token at h.
        retain_prob: `f*(h)`, P(retain | h).
        forget_sup: `H`, the largest `p_f(y | h)`.
        entropy: of `p_r(. | h)`, nats.
        temperature: `T >= 1`.
        kappa: `E_{y ~ p_r(. | h)} -log f(h, y)`, nats.

    Returns:
        A bound of `sum_y p_f(y|h) |p_hat(y|h) - p_r(y|h)|`.

    Raises:
        ConfigError: an argument is out of range.
    """
    delta, keep, t = check_risk(delta), check_share(retain_prob, "retain_prob"), check_tempering(temperature)
    h, entropy = check_positive(forget_sup, "forget_sup"), check_at_least(entropy, 0, "entropy")
    drop = 1 - keep
    return float(math.exp(kappa - (1 - 1 / t) * entropy) * delta / drop * (drop * h / keep) ** (1 / t))


def memorized_token_probability(base_prob: float, odds_ratio: float, vocab_size: int, temperature: float) -> float:
    """Proposition 8: what is left of a token of probability `1 - zeta`, the others sharing zeta equally.

    `1 / (1 + Q (V-1)^(1-1/T) (zeta / (1-zeta))^(1/T))`.

    Args:
        base_prob: the token's probability under the base, in (0, 1).
        odds_ratio: `Q = f(other) / f(token) >= 0`, what the classifier makes of it.
        vocab_size: `V >= 2`.
        temperature: `T >= 1`.

    Raises:
        ConfigError: an argument is out of range.
    """
    keep, t = check_share(base_prob, "base_prob"), check_tempering(temperature)
    q, size = check_at_least(odds_ratio, 0, "odds_ratio"), check_at_least(vocab_size, 2, "vocab_size")
    if q == 0:
        return 1.0
    others = math.log(q) + (1 - 1 / t) * math.log(size - 1) + (math.log1p(-keep) - math.log(keep)) / t
    return float(expit(-others))


def memorized_token_required_ratio(base_prob: float, target: float, vocab_size: int, temperature: float) -> float:
    """Proposition 8 solved for Q: the smallest `f(other) / f(token)` that brings the token down to probability `target`.

    Arguments and errors as `memorized_token_probability`; `target` in (0, 1).
    """
    keep, t, target = check_share(base_prob, "base_prob"), check_tempering(temperature), check_share(target, "target")
    size = check_at_least(vocab_size, 2, "vocab_size")
    odds = (math.log(keep) - math.log1p(-keep)) / t
    return math.exp(math.log(1 / target - 1) - (1 - 1 / t) * math.log(size - 1) + odds)
