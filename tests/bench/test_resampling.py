"""Figures on resampled questions, against scipy and numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from tempertilt.bench.resampling import GENERATED_PARTS, LIKELIHOOD_PARTS, Value, resampled


def test_resampled_figures_are_those_of_the_whole_and_have_the_error_of_the_choice_of_questions() -> None:
    rng = np.random.default_rng(1)
    whole = rng.lognormal(0.0, 1.0, (20000, 2)) * np.array([1.0, 1.8])

    def measured(some: Any) -> dict[str, Value]:
        ours, theirs = ({"forget_quality": side.tolist(), "forget_Q_A_Prob": (side / 50).tolist()} for side in some.T)
        return resampled(ours, theirs)

    samples = [whole[rng.integers(0, len(whole), 80)] for _ in range(200)]
    distances = [float(ks_2samp(*some.T).statistic) for some in samples]
    gaps = [abs(float((some[:, 0] - some[:, 1]).mean())) / 50 for some in samples]
    trials = [measured(some) for some in samples[:10]]
    assert [values["ks_distance"].value for values in trials] == pytest.approx(distances[:10])
    assert [values["forget_gap"].value for values in trials] == pytest.approx(gaps[:10])
    assert np.mean([values["ks_distance"].error for values in trials]) == pytest.approx(np.std(distances), rel=0.25)
    assert np.mean([values["forget_gap"].error for values in trials]) == pytest.approx(np.std(gaps), rel=0.25)
    itself = measured(samples[0][:, [0, 0]])
    assert itself["ks_distance"][:2] == (0.0, 0.0) and itself["forget_gap"][:2] == (0.0, 0.0)


def test_a_utility_is_the_harmonic_mean_of_its_parts_and_missing_values_are_left_out() -> None:
    rng = np.random.default_rng(2)
    columns = {name: rng.uniform(0.1, 0.9, 7).tolist() for name in (*LIKELIHOOD_PARTS, *GENERATED_PARTS)}
    parts = [np.mean(columns[name]) for name in LIKELIHOOD_PARTS]
    assert resampled({name: columns[name] for name in LIKELIHOOD_PARTS}, None)["utility"].value == pytest.approx(hmean(parts))
    whole = resampled(columns, None)
    assert whole["utility"].value == pytest.approx(hmean([*parts, *(np.mean(columns[name]) for name in GENERATED_PARTS)]))
    assert whole["likelihood_utility"].value == pytest.approx(hmean(parts)) and "ks_distance" not in whole
    assert "utility" not in resampled({"forget_Q_A_Prob": [0.1, 0.2]}, None)
    holes = resampled({"forget_quality": [1.0, 2.0, None, 3.0], "forget_Q_A_Prob": [0.1, None, None, 0.4]},
                      {"forget_quality": [1.0, 5.0, 9.0, 3.0], "forget_Q_A_Prob": [0.2, 0.2, 0.2, 0.2]})  # fmt: skip
    assert holes["forget_Q_A_Prob"].value == pytest.approx(0.25) and holes["ks_distance"].value == pytest.approx(1 / 3)
    zero = resampled(columns | {"retain_Truth_Ratio": [0.0] * 7}, None)["utility"]
    assert zero[:2] == (0.0, 0.0)
