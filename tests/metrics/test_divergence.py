"""Distances from a reference's distributions: means over tokens, with questions resampled."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from tempertilt import metrics
from tempertilt.errors import ConfigError, DataError
from tempertilt.metrics import Sample


def test_means_are_over_tokens() -> None:
    samples = [
        Sample(0, reference_kl=(1.0, 2.0, 3.0), reference_same_top=(True, False, True)),
        Sample(1, reference_kl=(10.0,), reference_same_top=(False,)),
        Sample(2),
    ]
    distance, same = metrics.reference_kl(samples), metrics.reference_same_top(samples)
    assert distance.value == 4.0 and same.value == 0.5, "of four tokens, not of two questions"
    assert distance.per_sample == (2.0, 10.0, None) and (distance.n, distance.n_missing) == (2, 1)
    assert distance.details == {"tokens": 4} and distance.interval == (2.0, 10.0)
    assert distance.higher_is_better is False and same.higher_is_better is True
    for metric in (metrics.reference_kl, metrics.reference_same_top):
        with pytest.raises(DataError, match="--reference-model or --reference-peft-adapter"):
            metric([Sample(0)])


def test_the_interval_is_as_wide_as_the_figure_varies_between_samples_of_questions() -> None:
    rng = np.random.default_rng(0)

    def drawn() -> list[Sample]:
        return [
            Sample(i, reference_kl=tuple(rng.exponential(rng.uniform(1, 3), rng.integers(2, 30)).tolist())) for i in range(80)
        ]

    spread = np.std([metrics.reference_kl(drawn()).value for _ in range(200)])
    widths = [high - low for low, high in (metrics.reference_kl(drawn()).interval or (0, 0) for _ in range(10))]
    assert np.mean(widths) / (2 * 1.96) == pytest.approx(spread, rel=0.25)


def test_distances_of_tokens_are_those_of_scipy_on_the_tokens_of_all_answers() -> None:
    rng = np.random.default_rng(0)
    sides = [[(rng.normal(shift, 1, n), rng.normal(0, 1 + shift, n)) for n in (5, 1, 40, 12)] for shift in (0.8, 0.0)]
    samples, reference = (
        [Sample(i, log_probs=tuple(logs.tolist()), standardised=tuple(scores.tolist())) for i, (logs, scores) in enumerate(side)]
        for side in sides
    )
    for column, value in enumerate(("log_probs", "standardised")):
        result = metrics.ks_tokens([*samples, Sample(4)], reference[1:], value)  # type: ignore[arg-type]
        ours, theirs = (np.concatenate([answer[column] for answer in side]) for side in (sides[0], sides[1][1:]))
        assert result.value == pytest.approx(ks_2samp(ours, theirs).statistic) and 0.1 < result.value < 1
        assert (result.n, result.n_missing, result.interval) == (4, 1, None)
        assert result.details == {"tokens": 58, "tokens_reference": 53}
        assert metrics.ks_tokens(samples, samples, value).value == 0  # type: ignore[arg-type]


def test_distances_of_tokens_need_tokens_on_both_sides() -> None:
    some = [Sample(0, log_probs=(-1.0, -2.0))]
    with pytest.raises(DataError, match="the reference has no log_probs of answer tokens"):
        metrics.ks_tokens(some, [])
    with pytest.raises(DataError, match="the results have no standardised of answer tokens"):
        metrics.ks_tokens(some, some, "standardised")
    with pytest.raises(DataError, match="1 of 2 values of the results are not finite"):
        metrics.ks_tokens([Sample(0, log_probs=(-1.0, -np.inf))], some)
    with pytest.raises(ConfigError, match="must be one of log_probs, standardised"):
        metrics.ks_tokens(some, some, "hits")  # type: ignore[arg-type]
