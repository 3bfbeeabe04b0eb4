"""Choosing T (Section 8): the balance of what tempering saves on the spike against what it costs on the retain distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax, wrightomega

from tempertilt.errors import ConfigError
from tempertilt.theory.checks import (
    Array,
    check_at_least,
    check_positive,
    check_risk,
    check_samples,
    check_share,
    check_tempering,
)
from tempertilt.theory.guidance import retain_tempering_bias

METHODS = ("cgf", "lambert")


def concentration_gap(log_p_forget: ArrayLike, log_p_retain: ArrayLike) -> float:
    """`Lambda = log(gamma H / p_bar)`, nats: how far the forget spike stands above typical retained data (Section 9).

    The largest `log p` of the forget samples less the mean of the retain samples'. Scale-free; errs low by what the forget
    samples miss.

    Args:
        log_p_forget, log_p_retain: log-density of samples under the base, `(m,)` and `(n,)`; of sequences their totals.

    Raises:
        DataError: a set is empty or not finite.
    """
    return float(check_samples(log_p_forget, "log_p_forget").max() - check_samples(log_p_retain, "log_p_retain").mean())


def temperature_objective(
    temperature: float, delta: float, gamma: float, gap: float, log_p_retain: ArrayLike, penalty: float = 1.0
) -> float:
    """`J = (delta / (gamma (1-gamma))) e^(Lambda/T) + lambda B_r(T)`: equation (8.1), dimensionless.

    The first term bounds `F_T / p_bar` up to `e^kappa` for disjoint supports. Arguments and errors as `optimal_temperature`.
    """
    t, gamma = check_tempering(temperature), check_share(gamma)
    with np.errstate(over="ignore"):
        first = check_risk(delta) / (gamma * (1 - gamma)) * float(np.exp(_check_gap(gap) / t))
    return first + check_positive(penalty, "penalty") * retain_tempering_bias(log_p_retain, t)


def optimal_temperature(
    delta: float,
    gamma: float,
    gap: float,
    log_p_retain: ArrayLike,
    penalty: float = 1.0,
    t_max: float = 3.0,
    method: str = "cgf",
    min_ess: float = 0.0,
) -> float:
    """The T that balances forget against retain error in (8.1), the leading terms of the bounds for disjoint supports.

    Args:
        delta: excess risk of the classifier, nats.
        gamma: share of forget data.
        gap: `Lambda`, nats.
        log_p_retain: `log p` of retain samples `(n,)`; of sequences their totals.
        penalty: `lambda > 0`, what a nat of retain error is worth in units of the relative forget error `F_T / p_bar`.
        t_max: largest T considered; the samples understate the retain error of a large one.
        method: "cgf" minimises (8.1) with the samples' own `B_r`; "lambert" has `B_r = beta^2 sigma^2 / 2`, for which
            `beta = W(Lambda^2 E_0' / (lambda sigma^2)) / Lambda`.
        min_ess: in "cgf", the least effective sample size of the weights `p^(-beta)`, as a share of n; caps T. It does not
            see a tail that is not in the sample.

    Returns:
        T in `[1, t_max]`; 1 where the spike is not above the retained data (`gap <= 0`) or delta is 0.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the samples are empty or not finite.
    """
    delta, gamma, lam = check_risk(delta), check_share(gamma), check_positive(penalty, "penalty")
    t_max, min_ess = check_tempering(t_max), check_at_least(min_ess, 0, "min_ess")
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; must be one of {', '.join(METHODS)}")
    gap = _check_gap(gap)
    x = -check_samples(log_p_retain, "log_p_retain")
    top = 1 - 1 / t_max
    if gap <= 0 or delta == 0 or top == 0:
        return 1.0
    log_gain = math.log(delta) - math.log(gamma) - math.log1p(-gamma) + gap  # log E_0'
    beta = _lambert(log_gain, gap, lam, x) if method == "lambert" else _stationary(log_gain, gap, lam, x, top, min_ess)
    return t_max if beta >= top else 1 / (1 - beta)


def _check_gap(gap: float) -> float:
    if not math.isfinite(gap):
        raise ConfigError(f"gap is {gap!r}; must be a finite number of nats")
    return float(gap)


def _lambert(log_gain: float, gap: float, penalty: float, x: Array) -> float:
    """`W(e^a) / Lambda` with `a = log(Lambda^2 E_0' / (lambda sigma^2))`, by Wright's omega, which takes the logarithm."""
    variance = float(x.var())
    if variance == 0:
        return 1.0
    return float(wrightomega(2 * math.log(gap) + log_gain - math.log(penalty * variance))) / gap


def _stationary(log_gain: float, gap: float, penalty: float, x: Array, top: float, min_ess: float) -> float:
    """The zero of J' in `[0, top]`, or the end that J falls towards: J is convex in beta, so its slope changes sign once."""
    x = x - x.mean()

    def weights(beta: float) -> Array:
        return np.asarray(softmax(beta * x))

    def too_few(beta: float) -> bool:
        return 1 / (x.size * float(np.square(weights(beta)).sum())) < min_ess

    def rises(beta: float) -> bool:
        """Whether J' > 0, from the logs of its two terms, which neither overflow nor vanish."""
        bias = float(weights(beta) @ x)  # B_r', non-negative but for rounding
        return bias > 0 and math.log(penalty * bias) > math.log(gap) + log_gain - beta * gap

    return _first(lambda beta: too_few(beta) or rises(beta), top)


def _first(holds: Callable[[float], bool], top: float) -> float:
    """The smallest beta in `[0, top]` from where on `holds`, by bisection; `top` if nowhere."""
    if not holds(top):
        return top
    low, high = 0.0, top
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def critical_temperature(delta: float, gamma: float, gap: float, tolerance: float) -> float:
    """The smallest T at which the bound of `F_T / p_bar` is at most `e^kappa tolerance`, for disjoint supports (Section 8).

    `T_c = max(1, Lambda / log(gamma (1-gamma) tolerance / delta))`.

    Args:
        delta: excess risk, nats.
        gamma: share of forget data.
        gap: `Lambda`, nats.
        tolerance: of the relative forget error `F_T / p_bar`, dimensionless, > 0.

    Returns:
        T >= 1; inf if no T reaches it, because delta >= gamma (1-gamma) tolerance.

    Raises:
        ConfigError: an argument is out of range.
    """
    delta, gamma, tolerance = check_risk(delta), check_share(gamma), check_positive(tolerance, "tolerance")
    gap = _check_gap(gap)
    if delta == 0:
        return 1.0
    room = math.log(gamma) + math.log1p(-gamma) + math.log(tolerance) - math.log(delta)
    if gap <= room:
        return 1.0
    return gap / room if room > 0 else math.inf
