"""The journal: what a killed run has left is taken as far as it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tempertilt.errors import TemperTiltError
from tempertilt.suites.journal import Journal

ODD = "a\u2028b\x85c\r\nd\x00"


def written(path: Path) -> Journal:
    journal = Journal(path, "key")
    journal.add(f"one {ODD}", {"text": ODD})
    journal.add("two", [1.5])
    return journal


def test_units_are_read_as_they_were_written(tmp_path: Path) -> None:
    units = written(tmp_path / "j").units
    assert Journal(tmp_path / "j", "key").units == units == {f"one {ODD}": {"text": ODD}, "two": [1.5]}


def test_the_journal_of_another_run_is_left_alone(tmp_path: Path) -> None:
    written(tmp_path / "j")
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(TemperTiltError, match="unfinished run with another model, other data or other options"):
        Journal(tmp_path / "j", "another")
    assert (tmp_path / "j").read_bytes() == before


@pytest.mark.parametrize(
    "rest", [b'{"unit": "three"', b'{"unit": "three"}\n', b"[1]\n", b"3\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"\r\n", b"\n"]
)
def test_what_is_not_whole_is_cut_off(tmp_path: Path, rest: bytes) -> None:
    whole = written(tmp_path / "j")
    size = (tmp_path / "j").stat().st_size
    with (tmp_path / "j").open("ab") as file:
        file.write(rest)
    again = Journal(tmp_path / "j", "key")
    assert again.units == whole.units and (tmp_path / "j").stat().st_size == size
    again.add("three", 3)
    assert Journal(tmp_path / "j", "key").units["three"] == 3


def test_lines_are_json_for_any_reader(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "key")
    journal.add("one", {"nll": float("nan"), "list": [float("inf"), 1.0]})
    lines: list[Any] = [
        json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "j").read_text(encoding="utf-8").splitlines()
    ]
    assert lines[1]["value"] == {"nll": None, "list": [None, 1.0]}


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
