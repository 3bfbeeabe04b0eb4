"""What `verify` finds, and whether it names the place."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from _ledgers import OFFICER, Place
from ledger_edits import EDITS, edited, without_triggers
from tempertilt.requests.ledger import verify

LAST = 9  # events of the ledger that `make_ledger` makes


def faults_of(place: Place) -> list[str]:
    return [str(fault) for fault in verify(place.directory)]


def run_sql(*statements: str) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        with without_triggers(directory) as connection:
            for statement in statements:
                connection.execute(statement)

    return edit


def test_a_ledger_that_nobody_changed_has_no_fault(place: Place) -> None:
    assert faults_of(place) == [] and len(place.ledger.events()) == LAST


@pytest.mark.parametrize("name", EDITS)
def test_random_edits_are_found(made: Place, tmp_path: Path, name: str) -> None:
    for seed in range(6):
        assert edited(made.directory, tmp_path / "copy", EDITS[name], random.Random(seed)), seed


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (run_sql("DELETE FROM events WHERE sequence = 4"), "event 5: event 4 is missing before it"),
        (run_sql("DELETE FROM events WHERE sequence IN (4, 5)"), "event 6: events 4 to 5 are missing before it"),
        (run_sql("DELETE FROM events WHERE sequence > 7"), "ledger.head: names 9 events; there are 7: the last ones are missing"),
        (run_sql("DELETE FROM events"), "ledger.head: names 9 events; there are 0: the last ones are missing"),
        (run_sql("UPDATE events SET time = '2020-01-01T00:00:00.000Z' WHERE sequence = 3"), "event 3: was changed"),
        (run_sql("UPDATE events SET \"by\" = 'nobody' WHERE sequence = 9"), "event 9: was changed"),
        (run_sql("UPDATE events SET payload = replace(payload, 'GDPR', 'none') WHERE sequence = 2"), "event 2: was changed"),
        (run_sql("UPDATE events SET payload = payload || ' ' WHERE sequence = 2"), "event 2: cannot be read: its payload is not"),
        (run_sql("UPDATE events SET hash = 'abc' WHERE sequence = 5"), "event 6: does not follow the event before it"),
        (
            run_sql(*(f"UPDATE events SET sequence = {new} WHERE sequence = {old}" for old, new in ((2, -1), (3, 2), (-1, 3)))),
            "event 2: does not follow the event before it",
        ),
        (
            run_sql("INSERT INTO events SELECT 10, time, \"by\", kind, request, payload, version, machine, hash, 'x', NULL "
                    "FROM events WHERE sequence = 9"),
            "ledger.head: names 9 events; there are 10: no command wrote the last ones",
        ),
    ],
)  # fmt: skip
def test_the_event_is_named(place: Place, edit: Callable[[Path], None], named: str) -> None:
    edit(place.directory)
    assert any(fault.startswith(named) for fault in faults_of(place)), faults_of(place)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda path: (path / "parts/REQ-2/adapter_config.json").unlink(), "parts/REQ-2/adapter_config.json: is missing"),
        (lambda path: (path / "parts/REQ-2/README.md").write_text("x"), "parts/REQ-2/README.md: was changed (request REQ-2)"),
        (lambda path: (path / "parts/REQ-2/more.bin").touch(), "parts/REQ-2/more.bin: is not one of the part's files"),
        (lambda path: (path / "parts/REQ-8").mkdir(), "parts/REQ-8: no event says that it is there"),
        (lambda path: shutil.rmtree(path / "parts"), "parts/REQ-0/README.md: is missing (request REQ-0)"),
        (lambda path: (path / "ledger.head").unlink(), "ledger.head: is missing or was changed"),
        (lambda path: (path / "ledger.sqlite").unlink(), "ledger.sqlite: is missing"),
        (lambda path: (path / "ledger.sqlite").write_bytes(b"x" * 5000), "ledger.sqlite: is damaged: file is not a database"),
        (lambda path: (path / "ledger.sqlite").write_bytes(b""), "ledger.sqlite: is damaged: no such table"),
        (lambda path: (path / "ledger.sqlite-wal").write_bytes(b"x" * 99), "ledger.sqlite-wal: holds changes that no command"),
    ],
)
def test_the_file_is_named(place: Place, edit: Callable[[Path], object], named: str) -> None:
    edit(place.directory)
    assert any(fault.startswith(named) for fault in faults_of(place)), faults_of(place)


def test_a_missing_trigger_is_found(place: Place) -> None:
    connection = sqlite3.connect(place.directory / "ledger.sqlite")
    connection.execute("DROP TRIGGER events_are_not_deleted")
    connection.close()
    assert "ledger.sqlite: its table or the triggers that keep events unchanged are not tempertilt's" in faults_of(place)


def test_an_older_state_of_the_whole_folder_is_found_by_a_head_kept_elsewhere(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.directory, tmp_path / "older")
    place.ledger.revoke("REQ-0", OFFICER, why="withdrawn")
    anchor = shutil.copy(place.directory / "ledger.head", tmp_path / "anchor")
    place.ledger.revoke("REQ-2", OFFICER, why="withdrawn")
    assert place.ledger.verify(anchor=anchor) == []
    assert verify(tmp_path / "older") == []
    [fault] = verify(tmp_path / "older", anchor=anchor)
    assert "the ledger does not go on from event 10" in fault.what


def test_nothing_is_written_in_a_ledger_that_does_not_end_as_its_head_says(place: Place) -> None:
    run_sql("DELETE FROM events WHERE sequence = 9")(place.directory)
    with pytest.raises(Exception, match=r"does not end as ledger.head says; see what is wrong with t3 requests verify"):
        place.ledger.revoke("REQ-0", OFFICER, why="withdrawn")


def test_verifying_changes_nothing(place: Place) -> None:
    before = {path: path.read_bytes() for path in place.directory.rglob("*") if path.is_file()}
    head = json.loads((place.directory / "ledger.head").read_text())
    for _ in range(3):
        assert verify(place.directory) == []
    assert all(path.read_bytes() == data for path, data in before.items()) and head["pending"] is None
