"""Random problems for property-based tests: densities on cells, a share, a classifier."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

QUICK = settings(max_examples=60, deadline=None, derandomize=True)

shares = st.floats(0.01, 0.99)
temperatures = st.floats(1.0, 10.0)


class Drawn(NamedTuple):
    retain: np.ndarray
    forget: np.ndarray
    weights: np.ndarray
    classifier: np.ndarray
    gamma: float

    @property
    def p(self) -> np.ndarray:
        return (1 - self.gamma) * self.retain + self.gamma * self.forget


@st.composite
def problems(draw: st.DrawFn, disjoint: bool = False) -> Drawn:
    """2 to 12 cells of widths 1e-4 to 10, masses over six orders of magnitude, log-odds within 12."""
    k = draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = 10 ** rng.uniform(-4, 1, k)
    masses = 10 ** rng.uniform(-6, 0, (2, k))
    if disjoint:
        split = draw(st.integers(1, k - 1))
        masses[0, split:], masses[1, :split] = 0, 0
    masses /= masses.sum(1, keepdims=True)
    odds = rng.uniform(-12, 12, k)
    return Drawn(masses[0] / weights, masses[1] / weights, weights, 1 / (1 + np.exp(-odds)), draw(shares))
