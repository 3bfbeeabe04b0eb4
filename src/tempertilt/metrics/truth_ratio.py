"""Truth ratio and forget quality (TOFU, Maini et al., arXiv 2401.06121; prob_mean from OpenUnlearning, arXiv 2506.12618)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb
from scipy.stats import ks_2samp

from tempertilt.errors import ConfigError, DataError
from tempertilt.metrics.result import RESAMPLES, SEED, MetricResult, mean_result, present
from tempertilt.metrics.samples import Results, Sample, Samples

Aggregator = Literal["closer_to_1_better", "true_better", "prob_mean"]
Mean = Literal["geometric", "arithmetic"]

EPSILON = 1e-10

MAKE_A_REFERENCE = """forget quality compares with a reference: a model that never saw the forget set.
Make one, measure it, and name it:
  t3 finetune --model BASE --data RETAIN.jsonl --output-dir reference-model
  t3 eval --suite tofu --model BASE --peft-adapter reference-model --output-dir reference-run
  t3 eval ... --reference reference-run
A log of the TOFU authors' or of open-unlearning's format can be named as well."""


def wrong_to_right(sample: Sample, mean: Mean = "geometric") -> tuple[float, float] | None:
    """Length-normalised probabilities of the wrong answers (their mean) and of the right one, or None.

    The right one is the paraphrase where the sample has one, else the answer itself (real authors, world facts).
    """
    if mean not in ("geometric", "arithmetic"):
        raise ConfigError(f"mean is {mean!r}; must be one of geometric, arithmetic")
    right = sample.nll if sample.paraphrase_nll is None else sample.paraphrase_nll
    if right is None or not sample.perturbed_nll:
        return None
    wrong = np.asarray(sample.perturbed_nll)
    average = math.exp(-wrong.mean()) if mean == "geometric" else float(np.exp(-wrong).mean())
    return average, math.exp(-right)


def truth_ratios(samples: Samples, mean: Mean = "geometric") -> list[float | None]:
    """R = P(wrong) / (P(right) + 1e-10) of every sample."""
    pairs = [wrong_to_right(sample, mean) for sample in samples]
    return [None if pair is None else pair[0] / (pair[1] + EPSILON) for pair in pairs]


def truth_ratio(
    samples: Samples,
    aggregator: Aggregator = "closer_to_1_better",
    *,
    mean: Mean = "geometric",
    name: str = "truth_ratio",
) -> MetricResult:
    """The truth ratio over samples.

    Args:
        aggregator: "closer_to_1_better": mean of min(R, 1/R), for forget sets; "true_better": mean of max(0, 1 - R), for
            retain sets; "prob_mean": mean of P(right) / (P(right) + P(wrong)).
        mean: over a sample's wrong answers; geometric as the TOFU authors' code, arithmetic as their paper.

    `per_sample` holds what is averaged; the ratios R themselves are `truth_ratios(samples)`.
    """
    combine = {
        "closer_to_1_better": lambda wrong, right: min(r := wrong / (right + EPSILON), 1 / (r + EPSILON)),
        "true_better": lambda wrong, right: max(0.0, 1 - wrong / (right + EPSILON)),
        "prob_mean": lambda wrong, right: right / (right + wrong + EPSILON),
    }
    if aggregator not in combine:
        raise ConfigError(f"aggregator is {aggregator!r}; must be one of {', '.join(combine)}")
    pairs = [wrong_to_right(sample, mean) for sample in samples]
    values = [None if pair is None else float(combine[aggregator](*pair)) for pair in pairs]
    protocol = f"{aggregator} over R = P(wrong) / P(right), {mean} mean over the wrong answers"
    higher = None if aggregator == "prob_mean" else True
    return mean_result(name, values, higher_is_better=higher, protocol=protocol)


def forget_quality(results: Results, reference: Results | None, *, mean: Mean = "geometric") -> MetricResult:
    """p-value of a two-sided Kolmogorov-Smirnov test between the forget set's truth ratios and the reference's.

    Above 0.05 the two can't be told apart by it. `details` holds the statistic D, n of the reference, and the floor: the
    p-value at D = 1 for these n, below which nothing can fall. There is no interval: resampling adds differences, so the
    p-values of resampled questions lie below the one of the questions themselves. `ks_distance` has the interval of D.

    Args:
        results, reference: with a split "forget"; the reference is a model that never saw the forget set.

    Raises:
        DataError: there is no reference (the message says how to make one), or a side has no truth ratio.
    """
    ours, theirs = _both_sides(results, reference, mean)
    test = ks_2samp(ours, theirs)
    all_ratios = truth_ratios(results["forget"], mean)
    return MetricResult(
        name="forget_quality",
        value=float(test.pvalue),
        n=len(ours),
        n_missing=len(all_ratios) - len(ours),
        higher_is_better=True,
        interval=None,
        per_sample=tuple(all_ratios),
        protocol=f"p-value of a two-sided KS test (scipy) on truth ratios, {mean} mean over the wrong answers",
        details={"statistic": float(test.statistic), "n_reference": len(theirs), "floor": ks_floor(len(ours), len(theirs))},
    )


def ks_distance(results: Results, reference: Results | None, *, mean: Mean = "geometric") -> MetricResult:
    """The distance D behind forget quality: the largest one between the distribution functions of the truth ratios.

    The interval is D less and plus the 95 % quantile of the largest deviation of the difference of the two functions over
    bootstrap resamples of either side (the bootstrap's confidence band: Bickel and Krieger, JASA 84, 1989). By the triangle
    inequality D deviates by no more than that; so D is always inside, which a percentile interval of D does not achieve.

    Args:
        results, reference: with a split "forget"; the reference is a model that never saw the forget set.

    Raises:
        DataError: there is no reference (the message says how to make one), or a side has no truth ratio.
    """
    ours, theirs = _both_sides(results, reference, mean)
    steps = np.unique(np.concatenate([ours, theirs]))
    rng = np.random.default_rng(SEED)
    shares, drawn = zip(*(_shares_below(side, steps, rng) for side in (ours, theirs)))
    difference = shares[0] - shares[1]
    distance = float(np.abs(difference).max())
    half = float(np.quantile(np.abs(drawn[0] - drawn[1] - difference).max(1), 0.95))
    return MetricResult(
        name="ks_distance",
        value=distance,
        n=len(ours),
        n_missing=len(results["forget"]) - len(ours),
        higher_is_better=False,
        interval=(max(0.0, distance - half), min(1.0, distance + half)),
        per_sample=(),
        protocol=f"Kolmogorov-Smirnov distance of truth ratios, {mean} mean over the wrong answers; interval: bootstrap band",
        details={"n_reference": len(theirs)},
    )


def _shares_below(
    values: NDArray[np.float64], steps: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distribution function of `values (n,)` at `steps (S,)`, and that of resamples `(RESAMPLES, S)`."""
    below = (values[:, None] <= steps).astype(np.float64)
    weights = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES)
    return below.mean(0), weights @ below / len(values)


def _both_sides(results: Results, reference: Results | None, mean: Mean) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if reference is None:
        raise DataError(MAKE_A_REFERENCE)
    return _ratios(results, "results", mean), _ratios(reference, "the reference", mean)


def _ratios(results: Results, side: str, mean: Mean) -> NDArray[np.float64]:
    if not results.get("forget"):
        raise DataError(f"forget quality: {side} has no samples of the forget set; it has {', '.join(results) or 'none'}")
    return present(f"forget quality ({side})", truth_ratios(results["forget"], mean))


def ks_floor(n: int, m: int) -> float:
    """The two-sided exact p-value at D = 1: 2 / C(n + m, n)."""
    return 2.0 / float(comb(n + m, n))
