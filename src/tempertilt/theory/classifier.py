"""The retain/forget classifier: its best version, the prior that it was trained with, and its excess risk (Sections 1, 2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr

from tempertilt.theory.checks import (
    Array,
    check_pair,
    check_probability,
    check_risk,
    check_share,
    check_values,
    log,
    same_shape,
)


def retain_posterior(p_retain: ArrayLike, p_forget: ArrayLike, gamma: float, weights: ArrayLike | None = None) -> Array:
    """The Bayes classifier `f*(z) = P(retain | z) = (1 - gamma) p_r(z) / p(z)`; 1/2 where `p = 0`, where nothing depends on it.

    Args:
        p_retain, p_forget: densities `(k,)`.
        gamma: share of forget data.
        weights: cell measures `(k,)`; ones by default.

    Returns:
        `(k,)`, probabilities. For `1 - f*` without cancellation call it with the densities exchanged and `1 - gamma`.

    Raises:
        ConfigError, DataError: as `mixture_density`.
    """
    retain, forget, _ = check_pair(p_retain, p_forget, weights)
    gamma = check_share(gamma)
    with np.errstate(invalid="ignore"):
        out = (1 - gamma) * retain / ((1 - gamma) * retain + gamma * forget)
    return np.where(np.isnan(out), 0.5, out)


def prior_logit_shift(gamma: float, train_forget_prior: float) -> float:
    """`b = log((1 - gamma) pi / (gamma (1 - pi)))`, nats: equation (1.1).

    Added to the log-odds of a classifier trained with forget share `pi` it gives those at forget share `gamma`, exactly.

    Raises:
        ConfigError: gamma or the prior is not in (0, 1).
    """
    gamma, pi = check_share(gamma), check_share(train_forget_prior, "train_forget_prior")
    return math.log1p(-gamma) + math.log(pi) - math.log(gamma) - math.log1p(-pi)


def correct_prior_shift(logits: ArrayLike, gamma: float, train_forget_prior: float) -> Array:
    """Log-odds of retain at forget share `gamma` from those learned at `train_forget_prior`: `logits + b`, any shape, nats.

    Raises:
        ConfigError: gamma or the prior is not in (0, 1).
        DataError: a logit is NaN.
    """
    return check_values(logits, "logits", finite=False) + prior_logit_shift(gamma, train_forget_prior)


class RiskFactor(NamedTuple):
    """Lemma 3: `lower * delta_pi <= delta_gamma <= upper * delta_pi`."""

    lower: float
    upper: float


def prior_shift_risk_factor(gamma: float, train_forget_prior: float) -> RiskFactor:
    """Lemma 3: between what multiples of the excess risk at the training prior the one after correction lies.

    Returns:
        min and max of `gamma / pi` and `(1 - gamma) / (1 - pi)`, dimensionless.

    Raises:
        ConfigError: gamma or the prior is not in (0, 1).
    """
    gamma, pi = check_share(gamma), check_share(train_forget_prior, "train_forget_prior")
    ratios = gamma / pi, (1 - gamma) / (1 - pi)
    return RiskFactor(min(ratios), max(ratios))


def uncorrected_prior_bias_bound(gamma: float, train_forget_prior: float) -> float:
    """Proposition 4: a prior left uncorrected costs at most `b^2 / 8` nats of retain error, with the exact `f*_pi`."""
    return prior_logit_shift(gamma, train_forget_prior) ** 2 / 8


def binary_kl(p: ArrayLike, q: ArrayLike) -> Array:
    """`kl(p || q) = p log(p/q) + (1-p) log((1-p)/(1-q))`, nats, elementwise; inf where q excludes what p allows.

    Raises:
        DataError: a value is outside [0, 1] or NaN.
    """
    a, b = check_probability(p, "p"), check_probability(q, "q")
    return np.asarray(np.maximum(rel_entr(a, b) + rel_entr(1 - a, 1 - b), 0.0))


def excess_bce_risk(
    retain_prob: ArrayLike,
    p_retain: ArrayLike,
    p_forget: ArrayLike,
    gamma: float,
    weights: ArrayLike | None = None,
    *,
    forget_prob: ArrayLike | None = None,
) -> float:
    """`delta = R(f) - R(f*) = E_p kl(f* || f)`, nats: equation (1.2), R the binary cross-entropy at the true prior.

    Args:
        retain_prob: `f`, the classifier's P(retain | z) `(k,)`, in [0, 1].
        p_retain, p_forget: densities `(k,)`.
        gamma: share of forget data.
        weights: cell measures `(k,)`; ones by default.
        forget_prob: `1 - f` `(k,)`, where it is known with more digits than the subtraction leaves.

    Returns:
        nats, >= 0; inf if the classifier excludes a class where it occurs.

    Raises:
        ConfigError: gamma is not in (0, 1).
        DataError: a density or a probability is not valid.
    """
    retain, forget, w = check_pair(p_retain, p_forget, weights)
    gamma = check_share(gamma)
    f = check_probability(retain_prob, "retain_prob")
    g = 1 - f if forget_prob is None else check_probability(forget_prob, "forget_prob")
    same_shape(f, retain, "retain_prob", "p_retain")
    same_shape(g, retain, "forget_prob", "p_retain")
    p = (1 - gamma) * retain + gamma * forget
    cells = rel_entr((1 - gamma) * retain, p * f) + rel_entr(gamma * forget, p * g)
    return max(0.0, float(w @ cells))


def retain_log_ratio(retain_prob: ArrayLike, p_retain: ArrayLike, p_forget: ArrayLike, gamma: float,
                     weights: ArrayLike | None = None) -> float:  # fmt: skip
    """`kappa = E_{p_r} log(f* / f)`, nats (Lemma 5); what Theorem 2 takes when the densities are known.

    Raises:
        ConfigError, DataError: as `excess_bce_risk`.
    """
    retain, forget, w = check_pair(p_retain, p_forget, weights)
    f = check_probability(retain_prob, "retain_prob")
    same_shape(f, retain, "retain_prob", "p_retain")
    best = retain_posterior(retain, forget, gamma, w)
    on = retain > 0
    return float((w * retain)[on] @ (log(best[on]) - log(f[on])))


class RiskParts(NamedTuple):
    """Lemma 1: the three non-negative terms that add up to the excess risk, nats."""

    retain: float
    forget: float
    share: float

    @property
    def total(self) -> float:
        """delta."""
        return self.retain + self.forget + self.share


def excess_risk_parts(
    retain_prob: ArrayLike,
    p_retain: ArrayLike,
    p_forget: ArrayLike,
    gamma: float,
    weights: ArrayLike | None = None,
    *,
    forget_prob: ArrayLike | None = None,
) -> RiskParts:
    """Lemma 1: `delta = (1-gamma) KL(p_r || p_hat) + gamma KL(p_f || p_hat_f) + kl(1-gamma || Z_1)`.

    `p_hat = p f / Z_1` and `p_hat_f = p (1-f) / (1-Z_1)` are what plain guidance makes of the two classes. Arguments and
    errors as `excess_bce_risk`.
    """
    retain, forget, w = check_pair(p_retain, p_forget, weights)
    gamma = check_share(gamma)
    f = check_probability(retain_prob, "retain_prob")
    g = 1 - f if forget_prob is None else check_probability(forget_prob, "forget_prob")
    same_shape(f, retain, "retain_prob", "p_retain")
    p = (1 - gamma) * retain + gamma * forget
    z, z_forget = float(w @ (p * f)), float(w @ (p * g))
    # where all mass goes to one class the other one's guided distribution does not exist: its KL is infinite
    kl = [
        math.inf if mass == 0 else max(0.0, float(w @ rel_entr(of, p * by / mass)))
        for of, by, mass in ((retain, f, z), (forget, g, z_forget))
    ]
    share = rel_entr(1 - gamma, z) + rel_entr(gamma, z_forget)
    return RiskParts((1 - gamma) * kl[0], gamma * kl[1], max(0.0, float(share)))


class ClassifierErrors(NamedTuple):
    """Lemma 2: bounds on what a classifier of excess risk delta gets wrong."""

    mean_square: float
    mean_absolute: float
    mean_square_root: float
    retained_mass: float


def classifier_error_bounds(delta: float) -> ClassifierErrors:
    """Lemma 2: from the excess risk `delta` (nats) to the classifier's error under the base distribution.

    Returns:
        Bounds on `E_p (f-f*)^2`, `E_p |f-f*|`, `E_p (sqrt f - sqrt f*)^2` and `|Z_1 - (1-gamma)|`.

    Raises:
        ConfigError: delta is negative.
    """
    half = check_risk(delta) / 2
    return ClassifierErrors(half, math.sqrt(half), delta, math.sqrt(half))
