"""The table of events: one SQLite file, to which rows are only added.

Plain `sqlite3` and no object mapper: there is one table, which is inserted into and read from beginning to end, and a privacy
officer can read the file with any SQLite program. Write-ahead log, foreign keys, and `PRAGMA user_version` as the number of the
schema. Triggers refuse changes; whoever takes the triggers away is found by `verify`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from urllib.parse import quote

from tempertilt.errors import LedgerError
from tempertilt.requests.events import Event
from tempertilt.storage import file_sha256

FILE = "ledger.sqlite"
WAIT = 60.0  # seconds for another process that writes
DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)  # the second where a message quotes bytes that are no text
COLUMNS = tuple(field.name for field in fields(Event))
MIGRATIONS = (
    """
CREATE TABLE events (
  sequence INTEGER PRIMARY KEY,
  time TEXT NOT NULL,
  "by" TEXT NOT NULL,
  kind TEXT NOT NULL,
  request TEXT NOT NULL,
  payload TEXT NOT NULL,
  version TEXT NOT NULL,
  machine TEXT NOT NULL,
  previous TEXT UNIQUE REFERENCES events (hash),
  hash TEXT NOT NULL UNIQUE,
  signature TEXT
);
CREATE TRIGGER events_are_not_changed BEFORE UPDATE ON events
  BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER events_are_not_deleted BEFORE DELETE ON events
  BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
CREATE TRIGGER events_follow_each_other BEFORE INSERT ON events
  WHEN NEW.sequence <> (SELECT count(*) + 1 FROM events)
    OR NEW.previous IS NOT (SELECT hash FROM events ORDER BY sequence DESC LIMIT 1)
  BEGIN SELECT RAISE(ABORT, 'an event must follow the last one'); END;
""",
)
"""Each makes the schema of the next number; never changed, only added to."""


@contextmanager
def opened(directory: Path, *, read_only: bool = False) -> Iterator[sqlite3.Connection]:
    """The ledger file of a directory, in which every statement is a transaction unless one is begun; closed at the end."""
    writable = os.access(directory, os.W_OK)
    mode = ("mode=ro" if read_only else "mode=rw") if writable else "mode=ro&immutable=1"
    with closing(_open(f"file:{quote(str((directory / FILE).absolute()))}?{mode}")) as connection:
        yield connection


@contextmanager
def connect(directory: Path) -> Iterator[sqlite3.Connection]:
    """As `opened`, for whoever works with it.

    Raises:
        LedgerError: there is no ledger, it was made by a newer version, or is damaged.
    """
    path = directory / FILE
    if not path.is_file():
        raise LedgerError(f"{str(directory)!r} has no {FILE}; must be a directory made by t3 requests init")
    try:
        with opened(directory) as connection:
            number = schema_number(connection)
            if number > len(MIGRATIONS):
                raise LedgerError(
                    f"{str(path)!r} has schema {number}; this version of tempertilt reads up to {len(MIGRATIONS)}: upgrade it"
                )
            yield connection
    except DAMAGE as error:
        raise LedgerError(f"{str(path)!r}: {error}; see what is wrong with t3 requests verify") from error


def create(path: Path) -> None:
    """Make an empty ledger file."""
    with closing(_open(f"file:{quote(str(path.absolute()))}?mode=rwc")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection)


def _open(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=WAIT, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def schema_number(connection: sqlite3.Connection) -> int:
    """The number of the schema that the file has."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an older schema up to date, one number after the other."""
    for number in range(schema_number(connection), len(MIGRATIONS)):
        connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")


@contextmanager
def writing_transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Inside, no other process writes; all is written at the end, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def insert(connection: sqlite3.Connection, event: Event) -> None:
    """Add an event."""
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    connection.execute(f"INSERT INTO events ({names}) VALUES ({', '.join('?' * len(COLUMNS))})", event.row)


def rows(connection: sqlite3.Connection, order: str = "ORDER BY sequence") -> list[dict[str, object]]:
    """All rows in the order of their numbers, or some, as they are."""
    return [dict(row) for row in connection.execute(f"SELECT * FROM events {order}")]


def read_events(directory: Path, order: str = "ORDER BY sequence") -> list[Event]:
    """All events in their order, or some; `LedgerError` for a row that is none."""
    with connect(directory) as connection:
        return events_of(connection, order)


def events_of(connection: sqlite3.Connection, order: str = "ORDER BY sequence") -> list[Event]:
    """As `read_events`, of an open ledger."""
    try:
        return [Event.from_row(row) for row in rows(connection, order)]
    except (ValueError, TypeError) as error:
        raise LedgerError(f"an event can't be read: {error}; see what is wrong with t3 requests verify") from error


def first_event(directory: Path) -> Event:
    """The first event, which makes the ledger; `LedgerError` where there is none."""
    return _only(directory, "WHERE sequence = 1")


def last_event(directory: Path) -> Event:
    """The last event; `LedgerError` where there is none."""
    return _only(directory, "ORDER BY sequence DESC LIMIT 1")


def _only(directory: Path, order: str) -> Event:
    events = read_events(directory, order)
    if not events:
        raise LedgerError(f"the ledger in {str(directory)!r} has lost its events; see what is wrong with t3 requests verify")
    return events[0]


def file_hash(directory: Path) -> str | None:
    """SHA-256 of the ledger file with all events in it; None where a reader keeps the log from being moved into it.

    No connection of this process is open while the file is read: closing it would end the locks that SQLite has on it.
    """
    with opened(directory) as connection:
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return None if busy else file_sha256(directory / FILE)
