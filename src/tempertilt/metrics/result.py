"""`MetricResult`: a value that can be trusted: how many samples, how many missing, interval, protocol, per-sample values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, hmean

from tempertilt.errors import ConfigError, DataError

RESAMPLES = 1000
SEED = 0

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class MetricResult:
    """One figure.

    Attributes:
        name: of the metric.
        value: the figure.
        n: samples that it is computed from.
        n_missing: samples that have no value (they are left out, never counted as 0).
        higher_is_better: for a model that should have forgotten; None where neither end is better.
        interval: 95 % percentile interval over 1000 bootstrap resamples of the samples, or as the protocol says; None where
            there is none.
        per_sample: the value of each sample, None where missing; empty where the figure is not made of per-sample values.
        protocol: how it is computed, in words.
        details: further numbers, by name.
    """

    name: str
    value: float
    n: int
    n_missing: int
    higher_is_better: bool | None
    interval: tuple[float, float] | None
    per_sample: tuple[float | None, ...]
    protocol: str
    details: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """JSON-ready, without the per-sample values."""
        return {
            "value": self.value,
            "n": self.n,
            "n_missing": self.n_missing,
            "higher_is_better": self.higher_is_better,
            "interval_95": list(self.interval) if self.interval else None,
            "protocol": self.protocol,
            **({"details": self.details} if self.details else {}),
        }


def present(name: str, values: Sequence[float | None]) -> NDArray[np.float64]:
    """The values that are there; `DataError` if there are none, or some are not finite."""
    kept = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(kept):
        raise DataError(f"{name}: none of {len(values)} samples has what it is computed from")
    if not np.isfinite(kept).all():
        raise DataError(f"{name}: {int((~np.isfinite(kept)).sum())} of {len(kept)} values are not finite numbers")
    return kept


def mean_result(name: str, values: Sequence[float | None], *, higher_is_better: bool | None, protocol: str) -> MetricResult:
    """The mean of per-sample values, missing ones left out."""
    return _mean(name, values, higher_is_better, protocol, _bootstrap_mean)


def rate_result(name: str, values: Sequence[bool | None], *, higher_is_better: bool | None, protocol: str) -> MetricResult:
    """The share of samples for which something is true, missing ones left out, with Clopper and Pearson's interval."""
    numbers = [None if value is None else float(value) for value in values]
    return _mean(name, numbers, higher_is_better, protocol, lambda kept: clopper_pearson(int(kept.sum()), len(kept)))


def _mean(
    name: str,
    values: Sequence[float | None],
    higher_is_better: bool | None,
    protocol: str,
    interval: Callable[[NDArray[np.float64]], tuple[float, float]],
) -> MetricResult:
    kept = present(name, values)
    return MetricResult(
        name=name,
        value=float(kept.mean()),
        n=len(kept),
        n_missing=len(values) - len(kept),
        higher_is_better=higher_is_better,
        interval=interval(kept),
        per_sample=tuple(values),
        protocol=protocol,
    )


def _bootstrap_mean(values: NDArray[np.float64]) -> tuple[float, float]:
    rng = np.random.default_rng(SEED)
    return _percentiles(values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1))


def clopper_pearson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a rate of which `hits` of `n` were seen (Clopper and Pearson, Biometrika 26, 1934).

    Either end alone is a one-sided bound at `(1 + level) / 2`.

    Raises:
        ConfigError: `n` is less than 1, `hits` is not within 0 and `n`, or `level` not within 0 and 1.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ConfigError(f"{hits} hits of {n}; must be 0 to n hits of n >= 1")
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}; must be > 0 and < 1")
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


def token_mean_result(
    name: str, values: Sequence[Sequence[float]], *, higher_is_better: bool | None, protocol: str
) -> MetricResult:
    """The mean over the tokens of all samples; a sample without tokens is missing. The interval resamples samples."""
    totals = present(name, [float(np.sum(tokens)) if len(tokens) else None for tokens in values])
    counts = np.array([len(tokens) for tokens in values if len(tokens)], dtype=np.float64)
    rng = np.random.default_rng(SEED)
    chosen = rng.integers(0, len(counts), (RESAMPLES, len(counts)))
    return MetricResult(
        name=name,
        value=float(totals.sum() / counts.sum()),
        n=len(counts),
        n_missing=len(values) - len(counts),
        higher_is_better=higher_is_better,
        interval=_percentiles(totals[chosen].sum(1) / counts[chosen].sum(1)),
        per_sample=tuple(float(np.mean(tokens)) if len(tokens) else None for tokens in values),
        protocol=protocol,
        details={"tokens": int(counts.sum())},
    )


def bootstrap(
    statistic: Callable[..., NDArray[np.float64]], *groups: NDArray[np.float64], resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % percentile interval of a statistic, each group of values resampled by itself; deterministic.

    Args:
        statistic: takes the resampled groups, `(resamples, n)` each, and returns `(resamples,)` values.
        groups: `(n,)` values each.
    """
    rng = np.random.default_rng(SEED)
    draws = [[group[rng.integers(0, len(group), len(group))] for group in groups] for _ in range(resamples)]
    return _percentiles(statistic(*(np.stack(rows) for rows in zip(*draws))))


def harmonic_mean(values: Sequence[float]) -> float:
    """The harmonic mean of non-negative numbers; 0 if one of them is 0."""
    return float(hmean(values)) if min(values) > 0 else 0.0


def exp_nll(nll: float | None) -> float | None:
    """The length-normalised probability `exp(-nll)`."""
    return None if nll is None else math.exp(-nll)


def _percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
