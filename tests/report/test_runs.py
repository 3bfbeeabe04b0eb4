"""Which runs are compared with which, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.runs import write_run
from tempertilt.errors import DataError
from tempertilt.report.runs import Comparison, compare


def test_the_first_of_several_is_the_model_before(comparison: Comparison) -> None:
    assert [run.name for run in comparison.runs] == ["full", "t3"] and comparison.reference_name == "never_saw"
    assert comparison.before is comparison.runs[0] and comparison.after == [comparison.runs[1]]


def test_a_target_that_is_no_run_of_the_report(tmp_path: Path) -> None:
    before, after = write_run(tmp_path / "full", 0.0, 0, n=4), write_run(tmp_path / "t3", 1.0, 0, n=4)
    comparison = compare([after], target=before)
    assert comparison.before is not None and comparison.before.name == "full"
    assert [run.name for run in comparison.after] == ["t3"] == [run.name for run in comparison.runs]


def test_folders_of_one_name_have_their_parents_too(tmp_path: Path) -> None:
    for parent in ("one", "other"):
        (tmp_path / parent).mkdir()
        write_run(tmp_path / parent / "full", 0.0, 0, n=4)
    comparison = compare([tmp_path / "one" / "full", tmp_path / "other" / "full"])
    assert [run.name for run in comparison.runs] == ["one/full", "other/full"]


def test_a_reference_that_is_gone_is_none(tmp_path: Path) -> None:
    alone = write_run(tmp_path / "alone", 0.0, 0, reference=tmp_path / "gone", n=4)
    comparison = compare([alone])
    assert comparison.reference is None and comparison.reference_name == "" and comparison.before is None
    assert "forget_quality" in comparison.runs[0].not_computed


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "holds list"), ('{"suite": "other"}', "suite 'other'"), ("{", "cannot be read"), (None, r"has no results\.json")],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=message):
        compare([tmp_path])


def test_runs_that_can_not_be_compared_are_refused(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one", 0.0, 0, n=4), write_run(tmp_path / "other", 0.0, 0, n=3)
    with pytest.raises(DataError, match="at least one"):
        compare([])
    with pytest.raises(DataError, match="twice"):
        compare([one, one])
    with pytest.raises(DataError, match="different forget questions"):
        compare([one, other])
    path = other / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"suite": "lume"}))
    with pytest.raises(DataError, match=r"other' is of the suite 'lume', '.*one' of 'tofu'; must all be of one suite"):
        compare([one, other])
