"""Reading and writing per-sample results; what is damaged is refused with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tempertilt.errors import DataError
from tempertilt.metrics import Draw, Sample
from tempertilt.suites.logs import read_log, write_samples

WHOLE = Sample(
    index=3,
    question="Who?",
    answer="Ä »name«",
    nll=0.25,
    paraphrase_nll=1.5,
    perturbed_nll=(2.0, 3.0),
    log_probs=(-0.1, -0.4),
    hits=(True, False),
    standardised=(0.5, -1.5),
    ends=False,
    generation="",
    rouge1_recall=0.0,
    rougeL_recall=1.0,
    rougeL_f1=0.5,
    base_perplexity=12.5,
    draws=(Draw("a", 0.5, None), Draw("b", 0.25, 3.0)),
    scores={"min_k": 4.0},
)


def test_our_own_round_trip(tmp_path: Path) -> None:
    results = {"forget": [WHOLE, Sample(index=4)], "holdout": [Sample(index=0, nll=0.0)]}
    (tmp_path / "samples.jsonl").write_text(write_samples(results), encoding="utf-8")
    assert read_log(tmp_path) == results == read_log(tmp_path / "samples.jsonl")


def test_compressed_samples_are_read_from_a_folder_or_by_name(tmp_path: Path) -> None:
    results = {"forget": [WHOLE]}
    (tmp_path / "samples.jsonl.gz").write_bytes(gzip.compress(write_samples(results).encode()))
    assert read_log(tmp_path) == results == read_log(tmp_path / "samples.jsonl.gz") == read_log(tmp_path / "samples.jsonl")
    (tmp_path / "samples.jsonl.gz").write_bytes(gzip.compress(b"{")[:-3])
    with pytest.raises(DataError, match="cannot be read as results"):
        read_log(tmp_path)


def open_unlearning_log() -> dict[str, Any]:
    def by_index(*values: Any) -> dict[str, Any]:
        return {"agg_value": 0.0, "value_by_index": {str(i): value for i, value in enumerate(values)}}

    return {
        "forget_Q_A_Prob": by_index({"prob": 0.5, "avg_loss": 0.7}, {"prob": None, "avg_loss": None}),
        "forget_truth_ratio": by_index({"score": 1.25}, {"score": 0.5}),
        "retain_Q_A_PERT_Prob": by_index({"prob": [0.1, 0.2], "avg_loss": [2.3, 1.6]}),
        "mia_min_k": {"auc": 0.5, "forget": by_index({"score": 2.0}), "holdout": by_index({"score": 3.0})},
        "model_utility": {"agg_value": 0.4},
    }


def test_open_unlearning_with_missing_samples_and_ratios_alone(tmp_path: Path) -> None:
    from tempertilt.metrics import truth_ratios

    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(open_unlearning_log()))
    results = read_log(tmp_path / "TOFU_EVAL.json")
    assert [sample.nll for sample in results["forget"]] == [0.7, None]
    assert truth_ratios(results["forget"]) == pytest.approx([1.25, 0.5])
    assert results["retain"][0].perturbed_nll == (2.3, 1.6)
    assert results["holdout"][0].scores == {"min_k": 3.0}


BAD: dict[str, tuple[str, str, str]] = {
    "not json": ("a.json", "{", "cannot be read as results"),
    "another thing": ("a.json", '{"a": 1}', "not a known log"),
    "a list": ("a.json", "[1]", "not a known log"),
    "split unknown by its name": ("a.json", '{"avg_gt_loss": {"0": 1.0}}', "the name tells the split"),
    "broken value": ("a.json", '{"eval_log.json": {"avg_gt_loss": {"0": "x"}}}', "damaged log"),
    "broken row": ("a.jsonl", '{"split": "forget", "index": 0}\n{"index": 1}\n', "a.jsonl:2: not a sample"),
    "unknown field": ("a.jsonl", '{"split": "forget", "index": 0, "loss": 1}\n', "a.jsonl:1: not a sample"),
    "unknown split": ("a.jsonl", '{"split": "train", "index": 0}\n', "unknown splits train"),
    "empty": ("a.jsonl", "", "no samples"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_is_no_log_is_refused(tmp_path: Path, case: str) -> None:
    name, text, message = BAD[case]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_log(tmp_path / name)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no results at"):
        read_log(tmp_path)
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as results"):
        read_log(tmp_path / "a.json")
