"""Figures on resampled questions. All trials of a part draw the same questions, so that rows can be subtracted draw by draw."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hmean

from tempertilt.metrics.result import MetricResult

RESAMPLES = 1000

LIKELIHOOD_PARTS = ("retain_Q_A_Prob", "ra_Q_A_Prob_normalised", "wf_Q_A_Prob_normalised", "retain_Truth_Ratio", "ra_Truth_Ratio",
                    "wf_Truth_Ratio")  # fmt: skip
"""The six of TOFU's nine parts of model utility that need no generated answer."""

GENERATED_PARTS = ("retain_Q_A_ROUGE", "ra_Q_A_ROUGE", "wf_Q_A_ROUGE")

COLUMNS = ("forget_quality", "forget_Q_A_Prob", *LIKELIHOOD_PARTS, *GENERATED_PARTS)
"""The metrics whose values by question are kept; forget quality's are truth ratios. The first word is the split."""

Columns = Mapping[str, Sequence[float | None]]
Array = NDArray[np.float64]


class Value(NamedTuple):
    """A figure of one trial.

    Attributes:
        value: the figure.
        error: its standard error by the choice of questions, NaN where unknown.
        draws: `(RESAMPLES,)`, the figure on resampled questions; None where only its error is known.
    """

    value: float
    error: float
    draws: Array | None = None


def columns_of(found: Mapping[str, MetricResult]) -> dict[str, list[float | None]]:
    """The values by question that are kept, to nine digits."""
    return {
        name: [None if value is None else float(f"{value:.9g}") for value in found[name].per_sample]
        for name in COLUMNS
        if name in found
    }


def resampled(ours: Columns, reference: Columns | None) -> dict[str, Value]:
    """The figures that are compared between methods: value and draws.

    D is that of `metrics.forget_quality`; both sides draw the same questions.

    Args:
        ours, reference: as `columns_of` gives them; of the same questions in the same order.

    Returns:
        forget_Q_A_Prob, retain_Q_A_Prob and utility (TOFU's model utility, or without generated answers the harmonic mean of its
        six likelihood-based parts); with a reference ks_distance, the Kolmogorov-Smirnov distance between the truth ratios,
        and forget_gap, the distance of the mean P(forget answer).
    """
    means = {name: _means(name, values) for name, values in ours.items() if name != "forget_quality"}
    found: dict[str, Array] = {name: means[name] for name in ("forget_Q_A_Prob", "retain_Q_A_Prob") if name in means}
    parts = [means[name] for name in LIKELIHOOD_PARTS if name in means]
    if len(parts) == len(LIKELIHOOD_PARTS):
        found["likelihood_utility"] = hmean(parts)
        generated = [means[name] for name in GENERATED_PARTS if name in means]
        found["utility"] = hmean(parts + generated) if len(generated) == len(GENERATED_PARTS) else found["likelihood_utility"]
    if reference is not None and "forget_quality" in ours:
        found["ks_distance"] = _distances(ours["forget_quality"], reference["forget_quality"])
        theirs = _means("forget_Q_A_Prob", reference["forget_Q_A_Prob"])
        found["forget_gap"] = np.abs(means["forget_Q_A_Prob"] - theirs)
    return {name: value_of(values) for name, values in found.items()}


def value_of(values: Array) -> Value:
    """A figure from its value on all questions, followed by its draws: `(1 + RESAMPLES,)`."""
    return Value(float(values[0]), float(values[1:].std()), values[1:])


def _means(name: str, values: Sequence[float | None]) -> Array:
    """The mean over the questions that have a value, on all of them and on each draw."""
    numbers = np.array(values, dtype=np.float64)
    known = ~np.isnan(numbers)
    weights = _weights(name.split("_")[0], len(numbers))
    return np.asarray(weights @ np.where(known, numbers, 0.0) / np.maximum(weights @ known, 1.0))


def _distances(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Array:
    """The Kolmogorov-Smirnov distance, on all questions and on each draw: both sides answer the questions that are drawn."""
    a, b = (np.array(of, dtype=np.float64) for of in (ours, theirs))
    known = ~(np.isnan(a) | np.isnan(b))
    a, b, weights = a[known], b[known], _weights("forget", len(known))[:, known]
    steps = np.unique(np.concatenate([a, b]))
    # what each question adds to the difference of the two distribution functions, at each step
    above = (a[:, None] <= steps).astype(np.float64) - (b[:, None] <= steps)
    return np.asarray(np.abs(weights @ above).max(1) / np.maximum(weights.sum(1), 1.0))


@functools.lru_cache(maxsize=16)
def _weights(split: str, count: int) -> Array:
    """`(1 + RESAMPLES, count)`: once each question, then how often each is in a draw, by a generator of the split's own."""
    rng = np.random.default_rng(list(split.encode()))
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), RESAMPLES)
    return np.concatenate([np.ones((1, count)), drawn.astype(np.float64)])
