"""Densities on cells, and classifiers with each kind of error, tuned to an excess risk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from tempertilt.theory import classifier
from tempertilt.theory.checks import Array, log
from tempertilt.theory.distributions import GaussianMixture, GridDistribution


@dataclass(frozen=True)
class SweepGrid:
    """The problems of a sweep; the defaults are the full one."""

    eps: Sequence[float] = field(default=(0.3, 1e-2, 1e-3, 1e-5), metadata={"help": "widths of the forget spike"})
    deltas: Sequence[float] = field(default=(1e-6, 1e-4, 1e-2, 1e-1), metadata={"help": "excess risks aimed at, nats"})
    gammas: Sequence[float] = field(default=(0.01, 0.1, 0.6), metadata={"help": "shares of forget data"})
    temperatures: Sequence[float] = field(default=(1.0, 1.1, 1.5, 2.0, 3.0, 10.0), metadata={"help": "T"})
    priors: Sequence[float] = field(default=(0.5, 0.2), metadata={"help": "training priors of Lemma 3 and Proposition 4"})
    seed: int = field(default=0, metadata={"help": "seed of the random densities and of the noise"})


class Problem(NamedTuple):
    """Two densities on cells, each `(k,)`, with the cell measures."""

    p_retain: Array
    p_forget: Array
    weights: Array


class Classifier(NamedTuple):
    """`f` and `1 - f`, each `(k,)`; both, because a subtraction loses digits."""

    retain: Array
    forget: Array


def disjoint_problem(eps: float, _rng: np.random.Generator) -> Problem:
    """`p_r = U[eps, 1 + eps]`, `p_f = U[0, eps]`."""
    edges = np.unique(np.concatenate([np.linspace(0, eps, 5), np.linspace(eps, 1 + eps, 21)]))
    retain, forget = GridDistribution.uniform(edges, eps, 1 + eps), GridDistribution.uniform(edges, 0, eps)
    return Problem(retain.density, forget.density, retain.weights)


def overlapping_problem(eps: float, _rng: np.random.Generator) -> Problem:
    """`p_r = U[0, 1]`, the spike `p_f = U[0, eps]` inside it: overlap 1."""
    edges = np.unique(np.concatenate([np.linspace(0, eps, 5), np.linspace(eps, 1, 21)]))
    retain, forget = GridDistribution.uniform(edges, 0, 1), GridDistribution.uniform(edges, 0, eps)
    return Problem(retain.density, forget.density, retain.weights)


def gaussian_problem(eps: float, _rng: np.random.Generator) -> Problem:
    """`p_r = N(0, 1)`, `p_f = N(1, eps)`, on a grid."""
    steps = 1 + eps * np.linspace(-8, 8, 49)
    edges = np.unique(np.concatenate([np.linspace(-7, 7, 57), steps[(steps > -7) & (steps < 7)]]))
    retain = GaussianMixture(np.array([[0.0]]), np.array([1.0]), np.array([1.0])).on_grid(edges)
    forget = GaussianMixture(np.array([[1.0]]), np.array([eps]), np.array([1.0])).on_grid(edges)
    return Problem(retain.density, forget.density, retain.weights)


def two_level_problem(eps: float, _rng: np.random.Generator) -> Problem:
    """A retain distribution of two levels, 95 % on [1, 2] and 5 % on [2, 20], and a spike beside it, a tenth within."""
    edges = np.unique(np.concatenate([np.linspace(1 - 0.9 * eps, 1 + 0.1 * eps, 5), [1.0], np.linspace(1, 2, 9)[1:],
                                      np.linspace(2, 20, 10)[1:]]))  # fmt: skip
    edges = edges[(edges >= 1 - eps)]
    centers, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    retain = np.where(centers < 1, 0.0, np.where(centers < 2, 0.95, 0.05 / 18))
    spike_at = centers < 1 + 0.1 * eps
    return Problem(retain / (retain @ widths), spike_at / (spike_at @ widths), widths)


def discrete_problem(eps: float, rng: np.random.Generator) -> Problem:
    """60 points, counting measure; random masses, the forget distribution on about one point, the sharper the smaller eps."""
    retain, forget = rng.dirichlet(np.full(60, 0.7)), rng.dirichlet(np.full(60, 0.7))
    forget = (1 - eps) * np.eye(60)[7] + eps * forget
    retain = np.maximum(retain, 1e-12)
    return Problem(retain / retain.sum(), forget / forget.sum(), np.ones(60))


FAMILIES: dict[str, Callable[[float, np.random.Generator], Problem]] = {
    "disjoint": disjoint_problem,
    "overlap": overlapping_problem,
    "gauss": gaussian_problem,
    "two-level": two_level_problem,
    "discrete": discrete_problem,
}


def bayes(problem: Problem, gamma: float) -> Classifier:
    """`f*` and `1 - f*`."""
    r, f, w = problem
    return Classifier(classifier.retain_posterior(r, f, gamma, w), classifier.retain_posterior(f, r, 1 - gamma, w))


def spoil(kind: str, best: Classifier, problem: Problem, gamma: float, strength: float, noise: Array) -> Classifier:
    """The Bayes classifier with one kind of error, its strength in [0, 1]."""
    f, g = best
    r, spike_density, _ = problem
    p = (1 - gamma) * r + gamma * spike_density
    if kind == "mix":  # towards 1/2
        return Classifier((1 - strength) * f + strength / 2, (1 - strength) * g + strength / 2)
    if kind == "leak":  # says retain on the spike
        s = np.where(spike_density >= spike_density.max() / 2, strength, 0.0)
        return Classifier(f + s * g, (1 - s) * g)
    if kind == "floor":  # never below
        return Classifier(np.maximum(f, strength), np.where(f < strength, 1 - strength, g))
    if kind == "drop":  # says forget on retain
        return Classifier((1 - strength) * f, g + strength * f)
    if kind == "tail":  # turned around in the low-density half
        s = np.where(p <= np.median(p[p > 0]), strength, 0.0)
        return Classifier((1 - s) * f + s * g, (1 - s) * g + s * f)
    logit = np.clip(log(f) - log(g), -30, 30) + 20 * strength * noise
    return Classifier(expit(logit), expit(-logit))


KINDS = ("mix", "leak", "floor", "drop", "tail", "noise")


def risk(by: Classifier, problem: Problem, gamma: float) -> float:
    """delta."""
    return classifier.excess_bce_risk(by.retain, *problem[:2], gamma, problem.weights, forget_prob=by.forget)


def tuned(kind: str, problem: Problem, gamma: float, delta: float, noise: Array) -> Classifier:
    """A classifier with this kind of error and excess risk `delta`, or with the most of it that has a finite excess risk."""
    best = bayes(problem, gamma)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if risk(spoil(kind, best, problem, gamma, middle, noise), problem, gamma) < delta:
            low = middle
        else:
            high = middle
    return spoil(kind, best, problem, gamma, low, noise)


class Case(NamedTuple):
    """A problem, a classifier, its excess risk and what to call them."""

    problem: Problem
    gamma: float
    classifier: Classifier
    delta: float
    label: dict[str, Any]


def cases(grid: SweepGrid) -> Iterator[Case]:
    """Families x eps x gamma x delta x kinds of error."""
    rng = np.random.default_rng(grid.seed)
    for family, make in FAMILIES.items():
        for eps in grid.eps:
            problem = make(eps, rng)
            noise = rng.standard_normal(problem.weights.size)
            for gamma in grid.gammas:
                for target in grid.deltas:
                    for kind in KINDS:
                        by = tuned(kind, problem, gamma, target, noise)
                        label = {"family": family, "eps": eps, "gamma": gamma, "delta": target, "error": kind}
                        yield Case(problem, gamma, by, risk(by, problem, gamma), label)
