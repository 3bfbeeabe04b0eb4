"""The chain of events, computed here from the table by hashlib alone."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from datetime import datetime
from typing import Any

import pytest

from _ledgers import OFFICER, Place
from tempertilt.errors import LedgerError
from tempertilt.requests.events import next_event


def rows_of(place: Place) -> list[dict[str, Any]]:
    connection = sqlite3.connect(place.directory / "ledger.sqlite")
    connection.row_factory = sqlite3.Row
    rows = [dict(row) for row in connection.execute("SELECT * FROM events ORDER BY sequence")]
    connection.close()
    return rows


@pytest.mark.integration
def test_each_hash_is_that_of_the_content_and_the_hash_before(place: Place) -> None:
    previous = None
    rows = rows_of(place)
    for number, row in enumerate(rows, start=1):
        content = {
            "sequence": number,
            "time": "2026-03-01T09:30:00.000Z",
            "by": "officer",
            "kind": row["kind"],
            "request": row["request"],
            "payload": json.loads(row["payload"]),
            "version": row["version"],
            "machine": row["machine"],
            "previous": previous,
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        assert row["hash"] == hashlib.sha256(text.encode()).hexdigest()
        previous = row["hash"]
    head = json.loads((place.directory / "ledger.head").read_text())
    database = (place.directory / "ledger.sqlite").read_bytes()
    assert (head["count"], head["hash"], head["pending"]) == (len(rows), previous, None)
    assert head["database"] == hashlib.sha256(database).hexdigest()
    assert place.ledger.version == rows[-1]["hash"][:12]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET time = 'x' WHERE sequence = 2",
        "DELETE FROM events WHERE sequence = 2",
        "DELETE FROM events",
        "INSERT OR REPLACE INTO events SELECT * FROM events WHERE sequence = 2",
        "INSERT INTO events VALUES (99, 'x', 'x', 'init', '', '{}', 'x', 'x', NULL, 'x', NULL)",
    ],
)
def test_the_table_can_only_be_added_to(place: Place, statement: str) -> None:
    connection = sqlite3.connect(place.directory / "ledger.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match=r"events are never|an event must follow"):
        connection.execute(statement)
    connection.close()
    assert place.ledger.verify() == []


def test_a_time_needs_its_zone() -> None:
    with pytest.raises(LedgerError, match="no time zone"):
        next_event(None, "init", "", {}, "officer", datetime(2026, 1, 31, 9, 30))


def test_times_are_written_in_utc(place: Place) -> None:
    at = datetime.fromisoformat("2026-05-01T01:15:00+02:00")
    event = next_event(None, "init", "", {}, "officer", at)
    assert event.time == "2026-04-30T23:15:00.000Z" and OFFICER.at is not None
