"""The explicit families of Section 5, with closed forms: where tempering is needed, and where it costs most."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tempertilt.errors import ConfigError
from tempertilt.theory.checks import Array, check_at_least, check_risk, check_share, check_tempering


class Example(NamedTuple):
    """Two densities, a classifier and the cell measures, each `(k,)`."""

    p_retain: Array
    p_forget: Array
    retain_prob: Array
    weights: Array


def spike_example(eps: float, gamma: float, delta: float) -> Example:
    """Theorem 3: `p_f = U[0, eps]`, `p_r = U[eps, 1 + eps]`; f = 1 on the second interval, `1 - exp(-delta/gamma)` on the first.

    The classifier's excess risk is exactly `delta`. Cells: the spike, then the rest.

    Raises:
        ConfigError: eps or gamma is not in (0, 1), or delta negative.
    """
    eps, gamma = check_share(eps, "eps"), check_share(gamma)
    return Example(
        np.array([0.0, 1.0]), np.array([1 / eps, 0.0]), np.array([_leak(gamma, delta), 1.0]), np.array([eps, 1.0])
    )  # fmt: skip


def _leak(gamma: float, delta: float) -> float:
    """`a = 1 - exp(-delta / gamma)`, what the classifier says on the spike where 0 is right."""
    return -math.expm1(-check_risk(delta) / gamma)


def _spike_mass(eps: float, gamma: float, delta: float, temperature: float) -> float:
    """`x = u_T eps^(1-1/T) a`, the mass on the spike over that on the rest, `u_T = (gamma / (1-gamma))^(1/T)`."""
    eps, gamma, t = check_share(eps, "eps"), check_share(gamma), check_tempering(temperature)
    return float((gamma / (1 - gamma)) ** (1 / t) * eps ** (1 - 1 / t) * _leak(gamma, delta))


def spike_forget_error(eps: float, gamma: float, delta: float, temperature: float) -> float:
    """Theorem 3: `F_T = u_T eps^(-1/T) a / (1 + u_T eps^(1-1/T) a)`, density unit.

    Raises:
        ConfigError: an argument is out of range.
    """
    x = _spike_mass(eps, gamma, delta, temperature)
    return x / eps / (1 + x)


def spike_retain_error(eps: float, gamma: float, delta: float, temperature: float) -> float:
    """Theorem 3: `R_T = log(1 + u_T eps^(1-1/T) a)`, nats. Errors as `spike_forget_error`."""
    return math.log1p(_spike_mass(eps, gamma, delta, temperature))


class Interval(NamedTuple):
    """A lower and an upper bound."""

    lower: float
    upper: float


def spike_forget_error_bounds(eps: float, gamma: float, delta: float, temperature: float) -> Interval:
    """Theorem 3: `(1-1/e) min(delta/gamma, 1) u_T eps^(-1/T) / (1 + u_T eps^(1-1/T)) <= F_T <= u_T eps^(-1/T) delta/gamma`."""
    eps, gamma, t = check_share(eps, "eps"), check_share(gamma), check_tempering(temperature)
    u, v = (gamma / (1 - gamma)) ** (1 / t), check_risk(delta) / gamma
    lower = (1 - 1 / math.e) * min(v, 1.0) * u * eps ** (-1 / t) / (1 + u * eps ** (1 - 1 / t))
    return Interval(lower, u * eps ** (-1 / t) * v)


def low_density_example(delta: float, temperature: float) -> tuple[Example, float, float]:
    """Proposition 5: a cell of small mass where the classifier is wrong; the rate `delta^(1/T)` of `D_T` is attained for T >= 2.

    Returns:
        The example (two unit cells, excess risk `delta`), its gamma, and `|Z_hat_T - Z_T| = (delta / log 2)^(1/T) / 2`.

    Raises:
        ConfigError: delta is not in (0, log 2), or T below 2.
    """
    gamma = check_risk(delta) / math.log(2)
    if not 0 < gamma < 1:
        raise ConfigError(f"delta is {delta!r}; must be a number strictly between 0 and log 2")
    t = check_at_least(temperature, 2, "temperature")
    cells = Example(np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([1.0, 0.5]), np.ones(2))
    return cells, gamma, gamma ** (1 / t) / 2
