"""Several parts in one model: what the sum of their tilts gives instead of the retain distribution (Section 14)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tempertilt.errors import DataError
from tempertilt.theory.checks import Array, check_density, check_probability


def parts_overlap(retain_probs: ArrayLike) -> Array:
    """`h (k,)`: the probability that at least two of independent events happen, whose probabilities are `1 - f_i` (14.1).

    Args:
        retain_probs: `f_i = gamma_0 p_r / (gamma_0 p_r + gamma_i p_i)` of each part, `(n, k)`.

    Raises:
        DataError: they are no probabilities `(n, k)`.
    """
    f = check_probability(retain_probs, "retain_probs")
    if f.ndim != 2:
        raise DataError(f"retain_probs has shape {f.shape}; must be (parts, cells)")
    none, one, more = np.ones(f.shape[1]), np.zeros(f.shape[1]), np.zeros(f.shape[1])
    for retain in f:
        none, one, more = none * retain, one * retain + none * (1 - retain), more + one * (1 - retain)
    return more


def composition_retain_error_bound(p_retain: ArrayLike, retain_probs: ArrayLike, weights: ArrayLike | None = None) -> float:
    """`E_{p_r}[-log(1 - h) - h]`, an upper bound of `KL(p_r || p_hat)` of all parts together, nats (14.2).

    Args:
        p_retain: density `(k,)`.
        retain_probs: as of `parts_overlap`, `(n, k)`.
        weights: cell measures `(k,)`, ones by default.
    """
    density, w = check_density(p_retain, "p_retain", weights)
    h = parts_overlap(retain_probs)
    if h.shape != density.shape:
        raise DataError(f"retain_probs has {h.size} cells and p_retain {density.size}; must be the same")
    on = density > 0
    with np.errstate(divide="ignore"):
        return float((w * density)[on] @ (-np.log1p(-h[on]) - h[on]))
