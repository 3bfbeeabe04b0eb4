"""The journal of a run: what was written whole is there again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tempertilt.errors import TemperTiltError
from tempertilt.suites.journal import Journal


def test_a_journal_of_another_run_is_not_used(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j", "a")
    first.add("one", {"x": 1})
    first.add("two", [2])
    assert Journal(tmp_path / "j", "a").units == {"one": {"x": 1}, "two": [2]}
    other = Journal(tmp_path / "j", "b")
    assert other.units == {}
    other.add("three", 3)
    assert Journal(tmp_path / "j", "b").units == {"three": 3} and Journal(tmp_path / "j", "a").units == {}


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_that_a_kill_cut_off_is_gone_and_the_next_one_is_whole(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path / "j", "a")
    journal.add("one", 1)
    whole = (tmp_path / "j").read_bytes()
    journal.add("two", 2)
    (tmp_path / "j").write_bytes((tmp_path / "j").read_bytes()[:-cut])
    again = Journal(tmp_path / "j", "a")
    assert again.units == {"one": 1} and (tmp_path / "j").read_bytes() == whole
    again.add("three", 3)
    assert Journal(tmp_path / "j", "a").units == {"one": 1, "three": 3}


def test_a_journal_that_can_not_be_written_is_an_error_and_removing_none_is_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "nowhere" / "j", "a")
    with pytest.raises(TemperTiltError, match="cannot write"):
        journal.add("one", 1)
    assert journal.units == {}
    journal.remove()
