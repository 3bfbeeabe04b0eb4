"""Figures over seeds, scores, costs, and differences between rows, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from support.bench_rows import make_row
from tempertilt.bench.resampling import LIKELIHOOD_PARTS, Value, resampled
from tempertilt.bench.scores import Figure, Row, costs, differences, figure, score
from tempertilt.errors import DataError


def test_a_figure_is_the_mean_with_both_variances() -> None:
    values = [Value(0.2, 0.03), Value(0.4, 0.01), Value(0.3, 0.02)]
    row = figure("utility", values)
    seeds = 0.1 / math.sqrt(3)
    error = math.sqrt(seeds**2 + (0.03**2 + 0.01**2 + 0.02**2) / 3)
    assert row.mean == pytest.approx(0.3) and row.error == pytest.approx(error) and row.high == pytest.approx(0.3 + 1.96 * error)
    assert row.seed_high == pytest.approx(0.3 + 4.302652729911275 * seeds), "t with two degrees of freedom"
    one = figure("utility", [Value(0.2, 0.05)])
    assert one.high == pytest.approx(0.2 + 1.96 * 0.05) and math.isnan(one.seed_low)
    quality = figure("forget_quality", [Value(1e-4, math.nan), Value(1e-2, math.nan)])
    assert quality.mean == pytest.approx(1e-3) and (quality.low, quality.high) == (1e-4, 1e-2)


def test_two_methods_are_compared_on_the_same_draws() -> None:
    rng = np.random.default_rng(3)
    hard = rng.uniform(0.1, 0.8, 60)  # what a question is for both: five times what tells the methods apart
    names = [name for name in LIKELIHOOD_PARTS if name.startswith("retain")]

    def measured(noise: float, by: float) -> Figure:
        values = hard + by + noise * rng.normal(size=60)
        return figure("retain_Q_A_Prob", [resampled(dict.fromkeys(names, values.tolist()), None)["retain_Q_A_Prob"]])

    def row_of(name: str, of: Figure) -> Row:
        return Row(name, "NPO", "", {}, (0,), {"retain_Q_A_Prob": of}, {}, (), ())

    same, shifted, noisy = measured(0.0, 0.0), measured(0.0, 0.05), measured(0.03, 0.02)
    (by_shift,) = differences(row_of("a", shifted), [row_of("b", same)])
    assert by_shift.value == pytest.approx(0.05) and by_shift.high - by_shift.low < 1e-9 < same.error
    (by_noise,) = differences(row_of("a", noisy), [row_of("b", same)])
    assert (by_noise.high - by_noise.low) / (2 * 1.96) == pytest.approx(0.03 / math.sqrt(60), rel=0.3)
    seeds = figure("retain_Q_A_Prob", [Value(same.mean + of, same.error, same.draws) for of in (-0.1, 0.1)])
    (by_seeds,) = differences(row_of("a", seeds), [row_of("b", same)])
    assert by_seeds.high == pytest.approx(1.96 * 0.1) and by_seeds.better == "open"


def exact(value: float) -> Value:
    """A figure that every draw agrees on."""
    return Value(value, 0.0, np.full(4, value))


def test_a_score_is_the_harmonic_mean_of_forgetting_and_utility() -> None:
    target = {"utility": exact(0.5), "ks_distance": exact(0.9)}
    both = score({"utility": exact(0.4), "ks_distance": exact(0.3)}, target)
    assert both.value == pytest.approx(2 / (1 / (1 - 0.3 / 0.9) + 1 / 0.8)) and both.error == pytest.approx(0.0)
    assert score(target, target).value == 0.0, "a method that does nothing"
    apart = {"utility": exact(0.4), "ks_distance": exact(0.9), "forget_gap": exact(0.2)}
    by_gap = score(apart, target | {"forget_gap": exact(0.8)}, "forget_gap")
    assert by_gap.value == pytest.approx(2 / (1 / (1 - 0.2 / 0.8) + 1 / 0.8))
    assert score({"utility": exact(0.5), "ks_distance": exact(1.0)}, target).value == 0.0
    assert score({"utility": exact(0.9), "ks_distance": exact(0.0)}, target).value == pytest.approx(1.0)
    without = {"utility": exact(0.5), "forget_Q_A_Prob": exact(0.8)}
    assert score({**without, "forget_Q_A_Prob": exact(0.2)}, without).value == pytest.approx(2 / (1 / 0.75 + 1))
    draws = (np.array([0.2, 0.4]), np.array([0.8, 1.0]))
    half = Value(0.5, 0.0, np.full(2, 0.5))
    drawn = score(*({"utility": half, "ks_distance": Value(float(of.mean()), 0.1, of)} for of in draws))
    assert drawn.draws == pytest.approx([2 / (1 / 0.75 + 1), 2 / (1 / 0.6 + 1)])
    with pytest.raises(DataError, match="needs a utility"):
        score({}, target)


def test_a_ratio_that_was_not_timed_is_no_cost() -> None:
    result = {"seconds": {"training": 2.0, "unlearn": 3.0, "load": 1.0}, "evaluation_seconds": {"total": 5.0},
              "peak_memory_mib": {"unlearning": 7.0}, "trained_parameters": 1, "artefact_bytes": 4,
              "train_flops": 8.0}  # fmt: skip
    timed, untimed = ({**result, "overhead": {"ratio": ratio}} for ratio in (2.0, None))
    assert costs([timed, timed])["decoding"] == 2.0 and costs([timed])["unlearn_seconds"] == 2.0
    assert "decoding" not in costs([untimed])


def test_t3_against_rivals() -> None:
    rows = [make_row("t3", 0.6, 0.03, 5.0), make_row("A", 0.4, 0.04, 100.0), make_row("B", 0.62, 0.04, 400.0)]
    every = {(d.figure, d.rival): d for d in differences(rows[0], rows)}
    assert every["score", "A"].better == "first" and every["score", "B"].better == "open"
    assert every["ks_distance", "A"].better == "second", "lower is better"
    assert every["score", "A"].low == pytest.approx(0.2 - 1.96 * 0.05, abs=0.005)
