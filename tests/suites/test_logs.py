"""Reading and writing per-sample results; what is damaged is refused with file and line."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tempertilt.errors import DataError
from tempertilt.metrics import Draw, Sample
from tempertilt.suites.logs import read_log, write_samples
from tempertilt.suites.tofu import evaluate

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
    generation_ends=True,
    reference_perplexity=2.5,
    reference_kl=(0.5, 0.0),
    reference_same_top=(True, False),
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
    with pytest.raises(DataError, match=r"a\.json: begins with the byte order mark of UTF-16"):
        read_log(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match=r"a\.json:1: not UTF-8"):
        read_log(tmp_path / "a.json")


# --- odd characters and numbers --------------------------------------------------------------------------------------

ODD = "a\u2028b\u2029c\x85d\x00e\x0bf\x1cg\ufeffh\r\ni\U0001f600"


def test_texts_of_any_character_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = {"forget": [Sample(index=0, question=ODD, answer=ODD, generation=ODD, nll=1.0, draws=(Draw(ODD, 0.5),))] * 2}
    (tmp_path / "samples.jsonl").write_text(write_samples(results), encoding="utf-8")
    assert read_log(tmp_path) == results


def test_a_byte_order_mark_and_carriage_returns_of_an_editor(tmp_path: Path) -> None:
    results = {"forget": [WHOLE, Sample(index=4)]}
    (tmp_path / "samples.jsonl").write_bytes(b"\xef\xbb\xbf" + write_samples(results).replace("\n", "\r\n").encode())
    assert read_log(tmp_path) == results


def test_what_is_not_a_finite_number_counts_as_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nan, inf = float("nan"), float("inf")
    strange = Sample(index=0, nll=nan, paraphrase_nll=inf, perturbed_nll=(1.0, nan), log_probs=(-inf, -1.0), rougeL_recall=0.5,
                     draws=(Draw("a", 0.5, nan),), scores={"min_k": nan, "loss": 1.0})  # fmt: skip
    text = write_samples({"forget": [strange, WHOLE]})
    for line in text.splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    (tmp_path / "samples.jsonl").write_text(text, encoding="utf-8")
    first, second = read_log(tmp_path)["forget"]
    assert first == Sample(index=0, rougeL_recall=0.5, draws=(Draw("a", 0.5),), scores={"loss": 1.0})
    assert second == WHOLE
    assert "1 samples hold numbers that are not finite" in caplog.text


OUT_OF_RANGE: dict[str, tuple[dict[str, Any], str]] = {
    "likelihood above 1": ({"nll": -800.0}, "nll is -800.0; must be between -0.001 and inf"),
    "paraphrase": ({"paraphrase_nll": -3}, "paraphrase_nll is -3"),
    "wrong answer": ({"perturbed_nll": [1.0, -800.0]}, "perturbed_nll is -800.0"),
    "perplexity of 0": ({"base_perplexity": 0}, "base_perplexity is 0"),
    "perplexity of 0, drawn": ({"draws": [{"text": "", "rougeL_recall": 0.0, "base_perplexity": 0}]}, "base_perplexity is 0"),
    "no recall": ({"draws": [{"text": "", "rougeL_recall": None}]}, "rougeL_recall of a sampled answer is missing"),
    "recall above 1": ({"rougeL_recall": 1.5}, "rougeL_recall is 1.5; must be between 0 and 1.001"),
    "probability": ({"log_probs": [-1.0, 0.5]}, "log_probs is 0.5"),
    "a text for a number": ({"nll": "1.0"}, "nll is '1.0'; must be a number"),
    "true for a number": ({"nll": True}, "nll is True; must be a number"),
    "a list for a number": ({"nll": [1.0]}, "nll is (1.0,); must be a number"),
    "a number for a list": ({"log_probs": -3}, "log_probs is -3; must be a list of numbers"),
    "a huge number": ({"standardised": [10**400]}, "standardised is 1000"),
    "a number for a text": ({"answer": 3}, "answer is 3; must be a text"),
    "hits": ({"hits": [1, 0]}, "hits is (1, 0); must be a list of true and false"),
    "same top": ({"reference_same_top": True}, "reference_same_top is True; must be a list of true and false"),
    "ended": ({"generation_ends": 1}, "ends and generation_ends must be true or false"),
    "divergence": ({"reference_kl": [0.5, -0.5]}, "reference_kl is -0.5; must be between -0.001 and inf"),
    "index": ({"index": -1}, "index is -1; must be a whole number"),
    "score": ({"scores": {"min_k": "x"}}, "min_k is 'x'; must be a number"),
    "scores": ({"scores": [1]}, "AttributeError"),
    "nested": ({"nll": {"a": 1}}, "must be a number"),
}


@pytest.mark.parametrize("name", list(OUT_OF_RANGE))
def test_values_that_cannot_be_are_refused_with_file_and_line(tmp_path: Path, name: str) -> None:
    values, message = OUT_OF_RANGE[name]
    rows = [{"split": "forget", "index": 0}, {"split": "forget", "index": 1, **values}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        read_log(tmp_path)
    assert "samples.jsonl:2: not a sample: " in str(caught.value) and message in str(caught.value)


def test_values_that_cannot_be_in_foreign_logs(tmp_path: Path) -> None:
    log = open_unlearning_log()
    log["forget_Q_A_Prob"]["value_by_index"]["0"]["avg_loss"] = -800.0
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(log))
    with pytest.raises(DataError, match=r"TOFU_EVAL\.json' is a damaged log: forget 0: nll is -800\.0; must be"):
        read_log(tmp_path)
    for score in (0.0, -1.0, float("nan")):
        log = open_unlearning_log()
        log["forget_truth_ratio"]["value_by_index"]["1"]["score"] = score
        (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(log))
        with pytest.raises(DataError, match=r"is a damaged log: a truth ratio is .*; must be a number > 0"):
            read_log(tmp_path)
    short = {"eval_log_forget.json": {"avg_gt_loss": {"0": 1.0}, "generated_text": {"0": ["only one"]}}}
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(short))
    with pytest.raises(DataError, match=r"is a damaged log: IndexError"):
        read_log(tmp_path)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**320), 10**320), st.floats(), st.text(max_size=3), st.just([]), st.just({}),
    st.lists(st.one_of(st.floats(), st.integers(-2, 2)), max_size=3),
)  # fmt: skip


@pytest.mark.integration
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_value_in_a_log_is_measured_or_refused(data: st.DataObject) -> None:
    """No metric fails on what was read."""
    rows = []
    for index in range(2):
        row = json.loads(write_samples({"forget": [WHOLE]})) | {"index": index}
        for name in data.draw(st.lists(st.sampled_from(sorted(row)), max_size=2)):
            row[name] = data.draw(VALUES)
        rows.append(json.dumps(row) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.jsonl"
        path.write_text("".join(rows))
        try:
            results = read_log(path)
        except DataError:
            return
    evaluate(results)
    json.loads(write_samples(results).splitlines()[0], parse_constant=pytest.fail)
