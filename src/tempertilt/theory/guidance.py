"""The estimator `p^(1/T) f / Z`, its two errors, and what tempering costs with a perfect classifier (Sections 1, 4)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp, rel_entr

from tempertilt.errors import DataError
from tempertilt.theory.checks import (
    Array,
    check_density,
    check_pair,
    check_samples,
    check_share,
    check_tempering,
    check_values,
    log,
    same_shape,
)


class GuidedDensity(NamedTuple):
    """`log_density (..., k)` and `log_normalizer (...)`, natural logs."""

    log_density: Array
    log_normalizer: Array


def guided_log_density(
    log_p: ArrayLike, log_retain_prob: ArrayLike, temperature: float = 1.0, log_weights: ArrayLike | None = None
) -> GuidedDensity:
    """`log p_hat^(T) = log p / T + log f - log Z_T`, with `Z_T = int p^(1/T) f` (Section 1). T = 1 is plain guidance.

    Args:
        log_p: log-density of the base `(..., k)`; -inf where it is 0.
        log_retain_prob: `log f` `(..., k)`.
        temperature: `T >= 1`.
        log_weights: logs of the cell measures `(k,)`; zeros by default.

    Raises:
        ConfigError: T is below 1.
        DataError: shapes differ, a value is NaN or `log f` > 0, or no cell has both p > 0 and f > 0.
    """
    temperature = check_tempering(temperature)
    base = check_values(log_p, "log_p", finite=False)
    tilt = check_values(log_retain_prob, "log_retain_prob", finite=False)
    same_shape(base, tilt, "log_p", "log_retain_prob")
    if (tilt > 0).any():
        raise DataError(f"log_retain_prob has the value {tilt.max():g}; must be <= 0, a log of a probability")
    raw = base / temperature + tilt
    z = np.asarray(logsumexp(raw if log_weights is None else raw + np.asarray(log_weights, dtype=np.float64), axis=-1))
    if np.isneginf(z).any():
        raise DataError("no cell has both p > 0 and f > 0, so that p^(1/T) f cannot be normalised")
    return GuidedDensity(raw - z[..., None], z)


def retain_error(p_retain: ArrayLike, p_hat: ArrayLike, weights: ArrayLike | None = None) -> float:
    """`R_T = KL(p_r || p_hat)`, nats; inf where `p_hat = 0 < p_r`. Densities `(k,)`.

    Raises:
        DataError: a density is not valid or the shapes differ.
    """
    retain, w = check_density(p_retain, "p_retain", weights)
    hat, _ = check_density(p_hat, "p_hat", weights)
    same_shape(retain, hat, "p_retain", "p_hat")
    return max(0.0, float(w @ rel_entr(retain, hat)))


def forget_error(p_hat: ArrayLike, p_retain: ArrayLike, p_forget: ArrayLike, weights: ArrayLike | None = None) -> float:
    """`F_T = int p_f |p_hat - p_r|`, in the unit of a density. Densities `(k,)`.

    Raises:
        DataError: a density is not valid or the shapes differ.
    """
    retain, forget, w = check_pair(p_retain, p_forget, weights)
    hat, _ = check_density(p_hat, "p_hat", weights)
    same_shape(retain, hat, "p_retain", "p_hat")
    return float(w @ (forget * np.abs(hat - retain)))


def retain_tempering_bias(log_p_retain_samples: ArrayLike, temperature: float, sample_weights: ArrayLike | None = None) -> float:
    """Lemma 6: `B_r(T) = log E_{p_r} p^(-beta) + beta E_{p_r} log p`, `beta = 1 - 1/T`, nats.

    The retain error of tempering with a perfect classifier: convex and non-decreasing in beta, 0 at T = 1, and 0 for all T
    exactly where log p is constant on the retain distribution. From samples it errs low, the more so for large T.

    Args:
        log_p_retain_samples: `log p` at retain samples `(n,)`; of a sequence its total, not its mean per token.
        temperature: `T >= 1`.
        sample_weights: probabilities of the samples `(n,)`, any scale; equal by default.

    Raises:
        ConfigError: T is below 1.
        DataError: samples are empty or not finite, or weights are negative or all 0.
    """
    beta = 1 - 1 / check_tempering(temperature)
    log_p = check_samples(log_p_retain_samples, "log_p_retain_samples")
    mass = np.ones_like(log_p) if sample_weights is None else check_samples(sample_weights, "sample_weights")
    same_shape(log_p, mass, "log_p_retain_samples", "sample_weights")
    if (mass < 0).any() or mass.sum() == 0:
        raise DataError("sample_weights must be >= 0 and not all 0")
    mass = mass / mass.sum()
    centered = log_p - mass @ log_p  # so that the two terms do not cancel
    return max(0.0, float(logsumexp(-beta * centered, b=mass)))


def forget_tempering_bias(
    p_retain: ArrayLike, p_forget: ArrayLike, gamma: float, temperature: float, weights: ArrayLike | None = None
) -> float:
    """`B_f(T) = int p_f |p_r^(T) - p_r|` with `p_r^(T) = p_r p^(-beta) / E_{p_r} p^(-beta)` (after Lemma 6), density unit.

    What tempering does to the forget error with a perfect classifier: content that both classes share is suppressed under
    the spike. 0 for disjoint supports.

    Raises:
        ConfigError, DataError: as `mixture_density`; T below 1.
    """
    retain, forget, w = check_pair(p_retain, p_forget, weights)
    gamma, beta = check_share(gamma), 1 - 1 / check_tempering(temperature)
    on = retain > 0
    log_p = log((1 - gamma) * retain[on] + gamma * forget[on])
    log_mean = logsumexp(-beta * log_p, b=(w * retain)[on])
    return float((w * forget * retain)[on] @ np.abs(np.expm1(-beta * log_p - log_mean)))
