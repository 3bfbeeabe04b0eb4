"""Agreement with published figures: the TOFU authors' logs, and open-unlearning's log of its own evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tempertilt import metrics
from tempertilt.suites.tofu import evaluate, read_log


def test_the_tofu_authors_logs(shared: Path) -> None:
    full, retain = (read_log(shared / "tofu_logs" / f"phi_{name}_wd0.01.json") for name in ("full", "retain90"))
    quality = metrics.forget_quality(full, retain)
    assert quality.value == pytest.approx(2.1942743e-16, rel=1e-6) and quality.n == 300
    assert metrics.model_utility(full).value == pytest.approx(0.5220737, abs=5e-8)
    assert metrics.model_utility(retain).value == pytest.approx(0.5319909, abs=5e-8)
    arithmetic = metrics.forget_quality(full, retain, mean="arithmetic")
    assert arithmetic.value == pytest.approx(2.43e-17, rel=5e-3)
    assert arithmetic.details["statistic"] == pytest.approx(0.3567, abs=5e-5)
    found, reasons = evaluate(full, retain)
    assert found["forget_quality"].value == quality.value and found["model_utility"].value == metrics.model_utility(full).value
    assert "holdout" in reasons["mia_loss"]


def test_one_split_of_the_tofu_authors_alone(shared: Path, tmp_path: Path) -> None:
    log = json.loads((shared / "tofu_logs" / "phi_full_wd0.01.json").read_text())
    (tmp_path / "eval_log_forget.json").write_text(json.dumps(log["eval_log_forget.json"]))
    whole = read_log(shared / "tofu_logs" / "phi_full_wd0.01.json")
    assert read_log(tmp_path / "eval_log_forget.json") == {"forget": whole["forget"]}
    (tmp_path / "eval_log.json").write_text(json.dumps(log["eval_log.json"]))
    assert read_log(tmp_path) == {split: whole[split] for split in ("forget", "retain")}
    (tmp_path / "eval_log_aggregated.json").write_text(json.dumps(log))
    assert read_log(tmp_path) == whole


def test_open_unlearning_s_log(shared: Path) -> None:
    path = shared / "golden" / "metrics" / "tofu_eval.json"
    log, results = json.loads(path.read_text()), read_log(path)
    assert {split: len(of) for split, of in results.items()} == dict.fromkeys(("forget", "retain", "real_authors", "holdout"), 12)
    found, _ = evaluate(results)
    checked = 0
    for ours, theirs in {**{name: name for name in found}, "forget_Truth_Ratio": "forget_truth_ratio"}.items():
        if theirs in log:
            assert found[ours].value == pytest.approx(log[theirs]["agg_value"], rel=1e-6), ours
            checked += 1
    assert checked >= 20
    variants = json.loads((path.parent / "truth_ratio_variants.json").read_text())
    for name, variant in variants.items():
        split, aggregator = name.split(".")
        result = metrics.truth_ratio(results[split], aggregator)  # type: ignore[arg-type]
        assert result.value == pytest.approx(variant["agg_value"], rel=1e-6)
        if aggregator != "prob_mean":
            scores = [row["score"] for row in variant["value_by_index"].values()]
            assert metrics.truth_ratios(results[split]) == pytest.approx(scores, rel=1e-6)


def test_kolmogorov_smirnov(shared: Path) -> None:
    cases = json.loads((shared / "golden" / "metrics" / "forget_quality.json").read_text())
    for case in (case for case in cases.values() if isinstance(case, dict)):
        sides = [
            {"forget": [metrics.Sample(i, paraphrase_nll=0.0, perturbed_nll=(_minus_log(v),)) for i, v in enumerate(case[side])]}
            for side in ("a", "b")
        ]
        result = metrics.forget_quality(*sides)
        assert result.value == pytest.approx(case["pvalue"], rel=1e-6)


def _minus_log(value: float) -> float:
    import math

    return -math.log(value)
