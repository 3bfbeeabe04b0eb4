"""A run's figures in words: counts, whether it is told from the reference, and that few samples say little."""

from __future__ import annotations

from typing import Any

from tempertilt.metrics.result import MetricResult, rate_result
from tempertilt.report.verdict import WEIGHTS, verdict


def rate(name: str, true: int, n: int) -> MetricResult:
    return rate_result(name, [i < true for i in range(n)], higher_is_better=False, protocol="p")


def figure(name: str, value: float, n: int = 200, **details: Any) -> MetricResult:
    return MetricResult(name, value, n, 0, True, None, (), "p", details)


def test_a_run_and_the_model_before() -> None:
    after = {
        "forget_leaked": rate("forget_leaked", 5, 200),
        "forget_leak_rate": rate("forget_leak_rate", 9, 400),
        "forget_quality": figure("forget_quality", 0.793, floor=1.9e-119),
        "ks_distance": figure("ks_distance", 0.065),
        "model_utility": figure("model_utility", 0.2669, 616),
    }
    before = {"forget_leaked": rate("forget_leaked", 198, 200), "model_utility": figure("model_utility", 0.2668, 616)}
    assert verdict(after, before) == [
        "5 of 200 answers to the forget questions hold a fact of the true answer (95 %: 0.8 to 5.7 in 100); 198 of 200 before.",
        "The forget set's truth ratios can't be told from those of the model that never saw it "
        "(p-value 0.793, least possible 1.9e-119, D 0.065, n = 200).",
        "Model utility is 0.267, 0.267 before.",
        WEIGHTS,
    ]


def test_few_samples_are_said_to_be_few() -> None:
    leaks, quality, _ = verdict(
        {"forget_leaked": rate("forget_leaked", 0, 12), "forget_quality": figure("forget_quality", 0.3, 12)}
    )
    assert leaks.startswith("0 of 12") and "0 to 26.5 in 100" in leaks and "12 are few" in leaks
    assert "nearly anything passes" in quality


def test_a_model_that_is_told_apart() -> None:
    (line, _) = verdict({"forget_quality": figure("forget_quality", 4.7e-24)})
    assert "can be told from" in line and "p-value 4.7e-24" in line and "passes" not in line


def test_other_suites_and_nothing_known() -> None:
    lines = verdict(
        {"forget_still_known": rate("x", 3, 150), "retain_still_known": rate("y", 149, 150), "mmlu_accuracy": figure("m", 0.3)}
    )
    assert [line.split()[0] for line in lines[:2]] == ["3", "149"] and lines[-1] == WEIGHTS
    assert verdict({"mmlu_accuracy": figure("m", 0.3)}) == []
