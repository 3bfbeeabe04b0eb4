"""What is wrong with a ledger: its file, the chain of its events, its head, and the files of its parts."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempertilt.errors import LedgerError
from tempertilt.requests import database
from tempertilt.requests.events import KINDS, Event
from tempertilt.requests.head import FILE as HEAD
from tempertilt.requests.head import Head, read_head
from tempertilt.requests.signing import is_signed, public_key_of
from tempertilt.requests.state import RequestState, states_of
from tempertilt.storage import UNFINISHED, file_sha256

PARTS = "parts"


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written: in an event (its number), or in a file (its path in the ledger's folder)."""

    what: str
    event: int | None = None
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.file if self.event is None else f'event {self.event}'}: {self.what}"


def find_faults(directory: Path, anchor: Path | None = None, public_key: str | None = None) -> list[Fault]:
    """All that is wrong with a ledger. Nothing is written.

    Args:
        anchor: a copy of an earlier `ledger.head`, kept elsewhere: the ledger must go on from there.
        public_key: hex, of the key that must have signed; else the one that the first event names.
    """
    path = directory / database.FILE
    if not path.is_file():
        return [Fault("is missing", file=database.FILE)]
    head, faults = _head(directory / HEAD, HEAD)
    if head is not None and head.pending is None:
        faults += _file_faults(path, head)
    try:
        found = _read_rows(path)
    except database.DAMAGE as error:
        return [*faults, Fault(f"is damaged: {error}", file=database.FILE)]
    faults += found.faults
    faults += _chain_faults(found.rows)
    events = [event for _, event in found.rows if event is not None]
    faults += _signature_faults(events, head, public_key)
    if head is not None:
        faults += _end_faults(events, head)
    if anchor is not None:
        kept, more = _head(anchor, str(anchor))
        faults += more if kept is None else _anchor_faults(events, kept, str(anchor))
    try:
        states = states_of(events)
    except LedgerError as error:
        return [*faults, Fault(str(error), file=database.FILE)]
    return [*faults, *_part_faults(directory, states, head)]


def _head(path: Path, name: str) -> tuple[Head | None, list[Fault]]:
    try:
        return read_head(path), []
    except LedgerError as error:
        return None, [Fault(f"is missing or was changed: {error}", file=name)]


def _file_faults(path: Path, head: Head) -> Iterator[Fault]:
    if head.database is not None and file_sha256(path) != head.database:
        yield Fault("its bytes are not those that were written last", file=database.FILE)
    log = path.with_name(f"{database.FILE}-wal")
    if head.database is not None and log.is_file() and log.stat().st_size:
        yield Fault("holds changes that no command has made", file=log.name)


@dataclass(frozen=True)
class _Found:
    """What the file of the ledger holds: rows with their numbers, None for one that is no event; and what is wrong with it."""

    rows: list[tuple[Any, Event | None]]
    faults: list[Fault]


def _read_rows(path: Path) -> _Found:
    rows: list[tuple[Any, Event | None]] = []
    faults = []
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript("".join(database.MIGRATIONS))
        wanted = _schema(model)
    with database.opened(path.parent, read_only=True) as connection:
        faults = [
            Fault(f"is damaged: {message}", file=database.FILE)
            for (message,) in map(tuple, connection.execute("PRAGMA integrity_check(10)"))
            if message != "ok"
        ]
        if _schema(connection) != wanted:
            faults.append(Fault("its table or the triggers that keep events unchanged are not tempertilt's", file=database.FILE))
        for row in database.rows(connection):
            try:
                event = Event.from_row(row)
                if event.row != tuple(row.values()):
                    raise ValueError("its payload is not the JSON that tempertilt writes")
                rows.append((row["sequence"], event))
            except (ValueError, TypeError) as error:
                rows.append((row["sequence"], None))
                faults.append(Fault(f"cannot be read: {error}", event=_number(row["sequence"])))
    return _Found(rows, faults)


def _schema(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return sorted(map(tuple, connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL")))


def _number(sequence: Any) -> int:
    return sequence if isinstance(sequence, int) else 0


def _chain_faults(rows: Sequence[tuple[Any, Event | None]]) -> Iterator[Fault]:
    """Events that are missing, changed, or do not follow the one before."""
    expected, last = 1, None
    for sequence, event in rows:
        number = _number(sequence)
        if number > expected:
            missing = f"event {expected} is" if number == expected + 1 else f"events {expected} to {number - 1} are"
            yield Fault(f"{missing} missing before it", event=number)
        if event is not None:
            yield from _event_faults(event, last, follows=number == expected)
        expected, last = number + 1, event


def _event_faults(event: Event, last: Event | None, *, follows: bool) -> Iterator[Fault]:
    try:
        intact = event.digest == event.hash
    except TypeError:  # a value of another type than was written
        intact = False
    if not intact:
        yield Fault(f"was changed: its hash is not that of its content ({event.kind} {event.request})", event=event.sequence)
    if event.kind not in KINDS or (event.kind == "init") != (event.sequence == 1):
        yield Fault(f"its kind is {event.kind!r}, which is out of place", event=event.sequence)
    if follows and (last is not None or event.sequence == 1) and event.previous != (last.hash if last else None):
        yield Fault("does not follow the event before it: one of the two was changed, or their order", event=event.sequence)


def _end_faults(events: Sequence[Event], head: Head) -> Iterator[Fault]:
    """Events missing at the end, or too many."""
    last = events[-1] if events else None
    if last is None or len(events) < head.count:
        yield Fault(f"names {head.count} events; there are {len(events)}: the last ones are missing", file=HEAD)
    elif head.pending is not None and len(events) == head.count + 1:
        if last.hash != head.pending.hash:
            yield Fault("is not the event that the head says was being written", event=last.sequence)
    elif len(events) > head.count:
        yield Fault(f"names {head.count} events; there are {len(events)}: no command wrote the last ones", file=HEAD)
    elif last.hash != head.hash:
        yield Fault("names another last event than there is", file=HEAD)


def _anchor_faults(events: Sequence[Event], anchor: Head, name: str) -> Iterator[Fault]:
    same = [event for event in events if event.sequence == anchor.count]
    if not same or same[0].hash != anchor.hash:
        yield Fault(f"the ledger does not go on from event {anchor.count} that it names: events were taken back", file=name)


def _signature_faults(events: Sequence[Event], head: Head | None, public_key: str | None) -> Iterator[Fault]:
    named = public_key_of(events[0].payload) if events else None
    if public_key is not None and named != public_key:
        yield Fault(f"names the public key {named}; must be {public_key}", event=1)
    key = public_key or named
    if key is None:
        return
    for event in events:
        if not is_signed(event.hash, event.signature, key):
            yield Fault("its signature is missing or wrong", event=event.sequence)
    if head is not None and not head.is_signed_by(key):
        yield Fault("its signature is missing or wrong", file=HEAD)


def _part_faults(directory: Path, states: Mapping[str, RequestState], head: Head | None) -> Iterator[Fault]:
    """Files of parts that are missing, changed, or that no event names."""
    wanted = {state.id: state for state in states.values() if state.has_files}
    for state in wanted.values():
        part = directory / PARTS / state.id
        there = {path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file()} if part.is_dir() else set()
        for name in sorted(there | set(state.files)):
            place = f"{PARTS}/{state.id}/{name}"
            if name not in there:
                yield Fault(f"is missing (request {state.id})", file=place)
            elif name not in state.files:
                yield Fault("is not one of the part's files", file=place)
            elif file_sha256(part / name) != state.files[name]:
                yield Fault(f"was changed (request {state.id})", file=place)
    pending = head.pending.request if head is not None and head.pending is not None else None
    for path in sorted((directory / PARTS).glob("*")):
        if path.name not in wanted and path.name != pending and not path.name.startswith(UNFINISHED):
            yield Fault("no event says that it is there", file=f"{PARTS}/{path.name}")
