"""Distances from a reference's distributions: means over tokens, with questions resampled."""

from __future__ import annotations

import numpy as np
import pytest

from tempertilt import metrics
from tempertilt.errors import DataError
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
