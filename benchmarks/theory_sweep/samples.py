"""Theorem 5 and the held-out bracket on repeated samples: how often they fail, and how close they come."""

from __future__ import annotations

import numpy as np
from benchmarks.theory_sweep.tally import Tally
from numpy.typing import NDArray
from scipy.special import expit

from tempertilt.theory import classifier, finite_samples
from tempertilt.theory.checks import Array

ETA = 0.05
Counts = tuple[NDArray[np.int64], NDArray[np.int64]]  # of each point among the retain and the forget samples
POINTS = 40


def sweep_samples(tally: Tally, repeats: int = 100, seed: int = 0) -> None:
    """Random masses on 40 points; `repeats` samples for each setting."""
    rng = np.random.default_rng(seed)
    for n, m, gamma in ((50, 50, 0.5), (400, 100, 0.2), (2000, 2000, 0.1)):
        retain, forget = rng.dirichlet(np.ones(POINTS)), rng.dirichlet(np.full(POINTS, 0.3)).clip(1e-9)
        forget = forget / forget.sum()
        label = {"n": n, "m": m, "gamma": gamma}
        for repeat in range(repeats):
            counts = rng.multinomial(n, retain), rng.multinomial(m, forget)
            check_finite(tally, retain, forget, counts, gamma, rng, label)
            check_fast(tally, retain, forget, counts, gamma, rng, label)
            check_held_out(tally, retain, forget, counts, gamma, rng, label)
            if repeat < repeats // 4:
                check_linear(tally, retain, forget, counts, gamma, rng, label)


def _risk(log_odds: Array, masses: tuple[Array, Array], gamma: float) -> float:
    """Cross-entropy with retain and forget masses, each summing to 1."""
    return float((1 - gamma) * masses[0] @ np.logaddexp(0, -log_odds) + gamma * masses[1] @ np.logaddexp(0, log_odds))


def _shares(counts: Counts) -> tuple[Array, Array]:
    return counts[0] / counts[0].sum(), counts[1] / counts[1].sum()


def check_finite(tally: Tally, retain: Array, forget: Array, counts: Counts, gamma: float,
                 rng: np.random.Generator, label: dict[str, float]) -> None:  # fmt: skip
    """The best of N random classifiers with log-odds in [-B, B]."""
    bound, size = 4.0, 50
    odds = np.log(retain / forget) + np.log((1 - gamma) / gamma)
    members = np.clip(odds + rng.normal(0, 2, (size, POINTS)), -bound, bound)
    truth = [classifier.excess_bce_risk(expit(by), retain, forget, gamma) for by in members]
    chosen = int(np.argmin([_risk(by, _shares(counts), gamma) for by in members]))
    least = finite_samples.excess_risk_bound_finite_class(
        int(counts[0].sum()), int(counts[1].sum()), gamma, bound, size, ETA, min(truth)
    )
    tally.at_most("Theorem 5: finite class", truth[chosen], least, **label)


def check_fast(tally: Tally, retain: Array, forget: Array, counts: Counts, gamma: float,
               rng: np.random.Generator, label: dict[str, float]) -> None:  # fmt: skip
    """Maximum likelihood over N classifiers one of which is right, corrected to gamma."""
    n, m = int(counts[0].sum()), int(counts[1].sum())
    prior, size = m / (n + m), 50
    odds = np.log(retain / forget) + np.log((1 - prior) / prior)
    bound = float(np.abs(odds).max())
    members = np.vstack([odds, np.clip(odds + rng.normal(0, 0.7, (size - 1, POINTS)), -bound, bound)])
    chosen = members[int(np.argmin([_risk(by, _shares(counts), prior) for by in members]))]
    corrected = classifier.correct_prior_shift(chosen, gamma, prior)
    delta = classifier.excess_bce_risk(expit(corrected), retain, forget, gamma)
    limit = finite_samples.excess_risk_bound_fast(n, m, gamma, bound, size, ETA)
    tally.at_most("Theorem 5: fast rate, finite class", delta, limit, **label)


def check_linear(tally: Tally, retain: Array, forget: Array, counts: Counts, gamma: float,
                 rng: np.random.Generator, label: dict[str, float]) -> None:  # fmt: skip
    """Weights in a ball, fitted by projected gradient steps to the sample and to the truth."""
    features = rng.standard_normal((POINTS, 4))
    features /= np.linalg.norm(features, axis=1).max()
    radius = 2.0
    fitted = fit_linear(features, _shares(counts), gamma, radius)
    best = fit_linear(features, (retain, forget), gamma, radius)
    delta, apart = (
        classifier.excess_bce_risk(expit(features @ w), retain, forget, gamma) for w in (fitted, best)
    )  # fmt: skip
    limit = finite_samples.excess_risk_bound_linear(
        int(counts[0].sum()), int(counts[1].sum()), gamma, radius, 1.0, ETA, min(apart, delta)
    )
    tally.at_most("Theorem 5: linear class", delta, limit, **label)
    by_parameters = finite_samples.excess_risk_bound_lipschitz(
        int(counts[0].sum()), int(counts[1].sum()), gamma, radius, 4, 1.0, radius, ETA, min(apart, delta)
    )
    tally.at_most("Theorem 5: k parameters", delta, by_parameters, **label)


def fit_linear(features: Array, masses: tuple[Array, Array], gamma: float, radius: float, steps: int = 400) -> Array:
    """The weights `(k,)` of least risk with norm at most `radius`: accelerated projected gradient, step 4 (smoothness 1/4)."""
    w = previous = np.zeros(features.shape[1])
    for i in range(steps):
        ahead = w + i / (i + 3) * (w - previous)
        f = expit(features @ ahead)
        gradient = features.T @ (gamma * masses[1] * f - (1 - gamma) * masses[0] * (1 - f))
        step = ahead - 4 * gradient
        previous, w = w, step / max(1.0, float(np.linalg.norm(step)) / radius)
    return w


def check_held_out(tally: Tally, retain: Array, forget: Array, counts: Counts, gamma: float,
                   rng: np.random.Generator, label: dict[str, float]) -> None:  # fmt: skip
    """A random classifier's true excess risk lies in the bracket from held-out samples."""
    bound = 4.0
    odds = np.clip(np.log(retain / forget) + np.log((1 - gamma) / gamma) + rng.normal(0, 2, POINTS), -bound, bound)
    delta = classifier.excess_bce_risk(expit(odds), retain, forget, gamma)
    logits = [np.repeat(odds, of) for of in counts]
    bracket = finite_samples.held_out_excess_risk_bound(logits[0], logits[1], gamma, bound, ETA)
    tally.at_most("Section 9: held-out upper bound", delta, bracket.upper, **label)
    tally.at_least("Section 9: held-out lower bound", delta, bracket.lower, **label)
