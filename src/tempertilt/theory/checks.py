"""What the functions of the theory accept; every refusal is a `ConfigError` or a `DataError`, both also `ValueError`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tempertilt.errors import ConfigError, DataError

Array = NDArray[np.float64]

MASS_TOLERANCE = 1e-6


def check_share(value: float, name: str = "gamma") -> float:
    """Return a share in (0, 1), such as gamma, a training prior or a confidence level; `ConfigError` otherwise."""
    if not (math.isfinite(value) and 0 < value < 1):
        raise ConfigError(f"{name} is {value!r}; must be a number strictly between 0 and 1")
    return float(value)


def check_tempering(temperature: float) -> float:
    """Return `T >= 1`, dimensionless; the theorems are about flattening, so `ConfigError` below 1."""
    if not (math.isfinite(temperature) and temperature >= 1):
        raise ConfigError(f"temperature is {temperature!r}; the theory covers numbers >= 1 (1 = no tempering)")
    return float(temperature)


def check_at_least(value: float, low: float, name: str) -> float:
    """Return a finite number `>= low`; `ConfigError` otherwise."""
    if not (math.isfinite(value) and value >= low):
        raise ConfigError(f"{name} is {value!r}; must be a finite number >= {low:g}")
    return float(value)


def check_positive(value: float, name: str) -> float:
    """Return a finite number `> 0`; `ConfigError` otherwise."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} is {value!r}; must be a finite number > 0")
    return float(value)


def check_risk(delta: float) -> float:
    """Return an excess risk `delta >= 0`, nats; `ConfigError` otherwise."""
    return check_at_least(delta, 0, "the excess risk delta")


def check_values(values: ArrayLike, name: str, *, finite: bool = True) -> Array:
    """A non-empty float64 array without NaN (and, if `finite`, without infinities); `DataError` otherwise."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise DataError(f"{name} is empty; must be an array with at least one number")
    bad = ~np.isfinite(array) if finite else np.isnan(array)
    if bad.any():
        raise DataError(f"{name} has {int(bad.sum())} values that are {'not finite' if finite else 'NaN'}, of {array.size}")
    return array


def check_samples(values: ArrayLike, name: str) -> Array:
    """A non-empty vector of finite numbers `(n,)`; `DataError` otherwise."""
    array = check_values(values, name)
    if array.ndim != 1:
        raise DataError(f"{name} has shape {array.shape}; must be a vector (n,)")
    return array


def check_weights(weights: ArrayLike | None, size: int) -> Array:
    """Cell measures `(k,)`, ones by default (counting measure); `DataError` unless finite and positive."""
    if weights is None:
        return np.ones(size)
    array = check_samples(weights, "weights")
    if array.shape != (size,):
        raise DataError(f"weights has shape {array.shape}, the densities have {size} cells; must have one weight for each cell")
    if (array <= 0).any():
        raise DataError(f"weights has the value {array.min():g}; must be > 0")
    return array


def check_density(density: ArrayLike, name: str, weights: ArrayLike | None = None) -> tuple[Array, Array]:
    """A density `(k,)` and its cell measures `(k,)`; `DataError` unless it is non-negative with integral 1 to within 1e-6."""
    array = check_samples(density, name)
    w = check_weights(weights, array.size)
    if (array < 0).any():
        raise DataError(f"{name} has the value {array.min():g}; must be >= 0")
    mass = float(array @ w)
    if abs(mass - 1) > MASS_TOLERANCE:
        raise DataError(f"{name} integrates to {mass:.9g}; must be 1 to within {MASS_TOLERANCE:g} (sum of density times weight)")
    return array, w


def check_pair(p_retain: ArrayLike, p_forget: ArrayLike, weights: ArrayLike | None = None) -> tuple[Array, Array, Array]:
    """Two densities on the same cells and the cell measures, each `(k,)`; `DataError` otherwise."""
    retain, w = check_density(p_retain, "p_retain", weights)
    forget, _ = check_density(p_forget, "p_forget", weights)
    same_shape(retain, forget, "p_retain", "p_forget")
    return retain, forget, w


def check_probability(values: ArrayLike, name: str) -> Array:
    """Numbers in [0, 1]; `DataError` otherwise."""
    array = check_values(values, name)
    if (array < 0).any() or (array > 1).any():
        raise DataError(f"{name} runs from {array.min():g} to {array.max():g}; must be in [0, 1]")
    return array


def same_shape(a: Array, b: Array, name_a: str, name_b: str) -> None:
    """`DataError` unless two arrays have one shape."""
    if a.shape != b.shape:
        raise DataError(f"{name_a} has shape {a.shape} and {name_b} {b.shape}; must be the same")


def log(values: Array) -> Array:
    """The natural logarithm with log 0 = -inf, without a warning."""
    with np.errstate(divide="ignore"):
        return np.log(values)
