"""Densities to try the theory on: finite, piecewise constant on a grid, mixtures of Gaussians. Sums over them are exact.

Every function of the theory takes plain arrays, one density value for each cell, and an optional array of cell measures
`weights` (ones: the counting measure). These classes make such arrays, and draw samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp, ndtr

from tempertilt.errors import DataError
from tempertilt.theory.checks import Array, check_density, check_pair, check_samples, check_share, check_values, log


def mixture_density(p_retain: ArrayLike, p_forget: ArrayLike, gamma: float, weights: ArrayLike | None = None) -> Array:
    """The base model's distribution `p = (1 - gamma) p_r + gamma p_f` (Section 1).

    Args:
        p_retain, p_forget: densities `(k,)` on the same cells.
        gamma: share of forget data, in (0, 1).
        weights: cell measures `(k,)`; ones by default.

    Returns:
        `(k,)`, in the densities' unit.

    Raises:
        ConfigError: gamma is not in (0, 1).
        DataError: a density is negative, not normalised, or of another shape.
    """
    retain, forget, _ = check_pair(p_retain, p_forget, weights)
    gamma = check_share(gamma)
    return (1 - gamma) * retain + gamma * forget


@dataclass(frozen=True)
class FiniteDistribution:
    """Probabilities `masses (k,)` of k points, with respect to the counting measure."""

    masses: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "masses", check_density(self.masses, "masses")[0])

    @property
    def density(self) -> Array:
        """`(k,)`: the masses."""
        return self.masses

    @property
    def weights(self) -> Array:
        """`(k,)` ones."""
        return np.ones_like(self.masses)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` indices of points, independent."""
        return rng.choice(self.masses.size, size=n, p=self.masses / self.masses.sum())


@dataclass(frozen=True)
class GridDistribution:
    """A density that is constant on the intervals between `edges (k + 1,)`: `density (k,)`, `weights (k,)` their lengths."""

    edges: Array
    density: Array

    def __post_init__(self) -> None:
        edges = check_samples(self.edges, "edges")
        if edges.size < 2 or (np.diff(edges) <= 0).any():
            raise DataError("edges must be at least two increasing numbers")
        density, _ = check_density(self.density, "density", np.diff(edges))
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "density", density)

    @classmethod
    def uniform(cls, edges: ArrayLike, low: float, high: float) -> GridDistribution:
        """The uniform distribution on `[low, high]`; both must be among `edges`."""
        at = np.asarray(edges, dtype=np.float64)
        inside = (at[:-1] >= low) & (at[1:] <= high)
        width = float(np.diff(at)[inside].sum())
        if not math.isclose(width, high - low, rel_tol=1e-9):
            raise DataError(f"[{low}, {high}] does not begin and end at edges of the grid; add both to the edges")
        return cls(at, np.where(inside, 1 / width, 0.0))

    @property
    def weights(self) -> Array:
        """Lengths of the intervals `(k,)`."""
        return np.diff(self.edges)

    @property
    def centers(self) -> Array:
        """Midpoints of the intervals `(k,)`."""
        return (self.edges[:-1] + self.edges[1:]) / 2

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """`n` independent points `(n,)`: an interval by its mass, then uniform in it."""
        mass = self.density * self.weights
        cell = rng.choice(mass.size, size=n, p=mass / mass.sum())
        return np.asarray(self.edges[cell] + rng.random(n) * self.weights[cell])


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of isotropic Gaussians in d dimensions: `means (c, d)`, `scales (c,)`, `shares (c,)` that sum to 1."""

    means: Array
    scales: Array
    shares: Array

    def __post_init__(self) -> None:
        means = np.atleast_2d(check_values(self.means, "means"))
        scales = check_samples(self.scales, "scales")
        shares, _ = check_density(self.shares, "shares")
        if not means.shape[0] == scales.size == shares.size:
            raise DataError(f"{means.shape[0]} means, {scales.size} scales and {shares.size} shares; must be as many of each")
        if (scales <= 0).any():
            raise DataError(f"scales has the value {scales.min():g}; must be > 0")
        for name, value in (("means", means), ("scales", scales), ("shares", shares / shares.sum())):
            object.__setattr__(self, name, value)

    @property
    def dim(self) -> int:
        """d."""
        return int(self.means.shape[1])

    def log_density(self, points: ArrayLike) -> Array:
        """Log-density `(...)` at `points (..., d)`, natural log."""
        x = np.asarray(points, dtype=np.float64)[..., None, :]
        square = ((x - self.means) ** 2).sum(-1) / self.scales**2
        parts = log(self.shares) - square / 2 - self.dim * np.log(self.scales * math.sqrt(2 * math.pi))
        return np.asarray(logsumexp(parts, axis=-1))

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """`n` independent points `(n, d)`."""
        which = rng.choice(self.shares.size, size=n, p=self.shares)
        return np.asarray(self.means[which] + self.scales[which, None] * rng.standard_normal((n, self.dim)))

    def on_grid(self, edges: ArrayLike) -> GridDistribution:
        """For d = 1: the mixture on a grid; masses of the cells by the normal distribution function, renormalised.

        Its density is constant on each cell, so sums over cells are exact for it; it is the mixture's average in each cell.
        """
        at = check_samples(edges, "edges")
        if self.dim != 1:
            raise DataError(f"the mixture has {self.dim} dimensions; a grid of edges needs 1")
        z = (at[:, None] - self.means[:, 0]) / self.scales
        # differences of the lower tail below the mean and of the upper tail above it keep their digits far out
        cell = np.where(z[:-1] > 0, ndtr(-z[:-1]) - ndtr(-z[1:]), ndtr(z[1:]) - ndtr(z[:-1]))
        mass = cell @ self.shares
        return GridDistribution(at, mass / mass.sum() / np.diff(at))

    def quadrature(self, order: int) -> tuple[Array, Array]:
        """Nodes `(q, d)` and weights `(q,)` with `E f(Z) = sum_i w_i f(z_i)`, exact for polynomials of degree `< 2 order`.

        Gauss-Hermite in each component and dimension; `q = components * order ** d`.
        """
        nodes, weights = np.polynomial.hermite_e.hermegauss(order)
        grid = np.stack(np.meshgrid(*[nodes] * self.dim, indexing="ij"), -1).reshape(-1, self.dim)
        product = np.stack(np.meshgrid(*[weights / weights.sum()] * self.dim, indexing="ij"), -1).reshape(-1, self.dim).prod(-1)
        points = self.means[:, None, :] + self.scales[:, None, None] * grid
        return points.reshape(-1, self.dim), (self.shares[:, None] * product).reshape(-1)
