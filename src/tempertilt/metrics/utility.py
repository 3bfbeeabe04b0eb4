"""Model utility (TOFU, Maini et al., arXiv 2401.06121) and its generative part MU-ROUGE."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tempertilt.errors import DataError
from tempertilt.metrics.likelihood import normalised_probability, probability
from tempertilt.metrics.result import RESAMPLES, SEED, MetricResult, harmonic_mean
from tempertilt.metrics.rouge import rouge
from tempertilt.metrics.samples import Results, Samples
from tempertilt.metrics.truth_ratio import truth_ratio

SPLITS = ("retain", "real_authors", "world_facts")


def model_utility(results: Results) -> MetricResult:
    """Harmonic mean of nine: {retain, real authors, world facts} x {probability, ROUGE-L recall, truth ratio}.

    The probability is plain for retain, normalised among the options for the other two; the truth ratio is "true_better".
    `details` holds the nine. The interval resamples the questions of each split.

    Raises:
        DataError: a split is missing.
    """
    parts: dict[str, Callable[[str, Samples], MetricResult]] = {
        "probability": lambda split, of: probability(of) if split == "retain" else normalised_probability(of),
        "rouge": lambda _split, of: rouge(of),
        "truth_ratio": lambda _split, of: truth_ratio(of, "true_better"),
    }
    protocol = (
        "harmonic mean of probability, ROUGE-L recall and truth ratio (true_better) on retain, real authors and world facts"
    )
    return _utility("model_utility", results, parts, protocol)


def mu_rouge(results: Results) -> MetricResult:
    """Harmonic mean of the ROUGE-L recalls on retain, real authors and world facts: utility as generated.

    The T3 paper (arXiv 2602.10217) names MU-ROUGE without its formula; this is our definition of it.
    """
    protocol = "harmonic mean of ROUGE-L recall on retain, real authors and world facts (our definition)"
    return _utility("mu_rouge", results, {"rouge": lambda _split, of: rouge(of)}, protocol)


def _utility(
    name: str, results: Results, parts: dict[str, Callable[[str, Samples], MetricResult]], protocol: str
) -> MetricResult:
    missing = [split for split in SPLITS if not results.get(split)]
    if missing:
        raise DataError(f"{name} needs samples of {', '.join(SPLITS)}; there are none of {', '.join(missing)}")
    found = {f"{split}_{part}": compute(split, results[split]) for split in SPLITS for part, compute in parts.items()}
    return MetricResult(
        name=name,
        value=harmonic_mean([part.value for part in found.values()]),
        n=sum(len(results[split]) for split in SPLITS),
        n_missing=sum(max(found[f"{split}_{part}"].n_missing for part in parts) for split in SPLITS),
        higher_is_better=True,
        interval=_interval(found, list(parts), results),
        per_sample=(),
        protocol=protocol,
        details={part: result.value for part, result in found.items()},
    )


def _interval(found: dict[str, MetricResult], parts: list[str], results: Results) -> tuple[float, float]:
    """All parts of a split are resampled by the same questions."""
    rng = np.random.default_rng(SEED)
    means = []
    for split in SPLITS:
        columns = np.array([found[f"{split}_{part}"].per_sample for part in parts], dtype=np.float64)  # None becomes NaN
        chosen = rng.integers(0, columns.shape[1], (RESAMPLES, columns.shape[1]))
        means.append(np.nanmean(columns[:, chosen], axis=2))
    values = np.concatenate(means)
    with np.errstate(divide="ignore"):
        utility = len(values) / (1.0 / values).sum(0)
    low, high = np.quantile(utility, [0.025, 0.975])
    return float(low), float(high)
