"""The ledger of removal requests: events in SQLite, a head beside it, and a folder for the part of each request.

ledger.sqlite        events, only added to (`database`)
ledger.head          how it ends (`head`)
parts/ID/            adapter of one request, as `models.adapter.load_adapter` reads it
readers.safetensors  how the gates of all parts read states, made from what is retained
cache/               features of retain records and background text, to be used again
work/                what is being made; deleted at the end

A command that writes first says so in the head, then puts files in place, then adds the event, then deletes what the event says
is to go, then completes the head. Whatever a killed process has left half-done, the next command completes or takes back.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tempertilt.errors import LedgerError
from tempertilt.requests import database
from tempertilt.requests.events import Event, next_event
from tempertilt.requests.faults import PARTS, Fault, find_faults
from tempertilt.requests.head import FILE as HEAD
from tempertilt.requests.head import Head, read_head, write_head
from tempertilt.requests.keyed import Key
from tempertilt.requests.signing import Author, Ed25519Signer, Signer, public_key_of
from tempertilt.requests.state import ACTIVE, ActivePart, Details, RequestState, parse_day, same_subject, states_of
from tempertilt.requests.work import CACHE, READERS, WORK, clear_work, work_folder
from tempertilt.storage import file_sha256, locked, make_dir, remove_directory, remove_unfinished

if TYPE_CHECKING:
    from tempertilt.data.fields import Columns
    from tempertilt.data.records import Record
    from tempertilt.fitting.recipe import UnlearnConfig
    from tempertilt.models.base import BaseModel
    from tempertilt.requests.adding import Added

log = logging.getLogger("tempertilt")

FORMAT = "tempertilt-ledger/1"
WRITING = "writing in this ledger"
VERSION_HEADER = "x-unlearning-version"
"""Header of a server's answers that says by which version of the ledger they were made."""


class Ledger:
    """A ledger that `Ledger.create` has made. Every call reads the file anew, so that processes see each other's events.

    Args:
        directory: of the ledger.

    Raises:
        LedgerError: there is no ledger, or it is damaged.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.settings: dict[str, Any] = database.first_event(self.directory).payload

    @classmethod
    def create(
        cls,
        directory: str | Path,
        base: BaseModel,
        retain: Sequence[str],
        author: Author,
        *,
        key_file: Path,
        config: UnlearnConfig | None = None,
        columns: Columns | None = None,
        progress: bool = True,
    ) -> Ledger:
        """Make a ledger for a model: its first event, the key, and features of the retain records and background text.

        Args:
            directory: new or empty.
            base: the model that all requests are about.
            retain: files, folders or hub ids of records that must stay unchanged; they are read again with each request.
            author: who does it.
            key_file: of the key of the keyed hashes, made if it is not there; not in the ledger.
            config: how each request is unlearned, with gates; `METHODS["t3"]` if not given.
            columns: names of the retain records' columns, as of `load_records`.

        Raises:
            LedgerError: there is a ledger already, or other files, or the key would lie beside what it protects.
        """
        from tempertilt.fitting.readers import fit_readers, save_readers
        from tempertilt.requests.adding import config_of, first_payload, prepare_cache, retain_records

        directory = Path(directory).absolute()
        _check_new(directory, key_file)
        signer = None if author.sign_key is None else Ed25519Signer(author.sign_key)
        payload = first_payload(base, retain, config, columns)
        config = config_of(payload)
        with work_folder(directory) as work:
            _check_new(directory, key_file)  # another process may have made one while this one waited
            retained = prepare_cache(base, config, retain_records(payload), directory / CACHE, progress=progress)
            save_readers(directory / READERS, fit_readers(*retained, config.gate))
            key = Key.make(key_file)
            payload["files"] = {READERS: file_sha256(directory / READERS)}
            payload |= {"format": FORMAT, "key": key.check, "key_file": str(key_file.absolute())}
            payload |= {"public_key": signer.public_key} if signer else {}
            event = _signed(next_event(None, "init", "", payload, author.by, author.at), signer)
            database.create(work / database.FILE)
            with database.opened(work) as connection, database.writing_transaction(connection):
                database.insert(connection, event)
            write_head(directory, Head(1, event.hash, database.file_hash(work)), signer)
            (work / database.FILE).replace(directory / database.FILE)
        return cls(directory)

    # --- reading ----------------------------------------------------------------------------------------------------

    @property
    def base(self) -> tuple[str, str | None]:
        """The model's name, and its PEFT adapter or None."""
        return self.settings["model"], self.settings["peft_adapter"]

    @property
    def version(self) -> str:
        """The first 12 hex digits of the last event's hash."""
        return database.last_event(self.directory).hash[:12]

    def events(self) -> list[Event]:
        """All events, the oldest first."""
        return database.read_events(self.directory)

    def requests(self) -> list[RequestState]:
        """All requests as they are now, in the order in which they were added."""
        return list(states_of(self.events()).values())

    def request(self, name: str) -> RequestState:
        """One request; `LedgerError` if there is none of this name."""
        return _known({state.id: state for state in self.requests()}, name)

    def active(self, at: datetime | None = None, scope: dict[str, str] | None = None) -> list[ActivePart]:
        """The parts that act, in the order in which they were added. A part whose last day is over is left out with a warning.

        Args:
            at: a time with its zone; now if not given. It decides what has expired, nothing else.
            scope: where they are to act, as {"tenant": "acme"}. A part stays out if it is for another place; where the scope does
                not say, it acts.

        Raises:
            LedgerError: the folder of a part is missing.
        """
        now, version, parts = at or datetime.now(timezone.utc), self.version, []
        for state in self.requests():
            if state.state != ACTIVE or not state.acts_in(scope or {}):
                continue
            if state.expired(now):
                _warn_expired(str(self.directory), state.id, str(state.expires))
                continue
            part = self.part(state.id)
            if not part.is_dir():
                if self.version != version:  # it was revoked meanwhile
                    return self.active(at, scope)
                raise LedgerError(f"request {state.id} acts, but its part {str(part)!r} is missing; see t3 requests verify")
            parts.append(ActivePart(state.id, part, state.scope))
        return parts

    def covering(self, records: Sequence[Record], key_file: Path | None = None) -> list[list[RequestState]]:
        """For each record the requests that hold it, whatever their state; it takes the key."""
        key, states = self.key(key_file), self.requests()
        hashes = [key.record(record) for record in records]
        return [[state for state in states if digest in state.records] for digest in hashes]

    def about(self, subject: str, key_file: Path | None = None) -> list[RequestState]:
        """The requests about a subject, whatever their state; it takes the key."""
        digest = self.key(key_file).subject(subject)
        return [state for state in self.requests() if state.subject == digest]

    def part(self, name: str) -> Path:
        """The folder of a request's part."""
        return self.directory / PARTS / name

    def export(self) -> dict[str, Any]:
        """All events with their hashes and signatures, JSON-ready."""
        return {"format": FORMAT, "events": [dict(vars(event)) for event in self.events()]}

    def verify(self, anchor: Path | None = None, public_key: str | None = None) -> list[Fault]:
        """All that is wrong, when what a killed process has left is put in order. Arguments as of `find_faults`."""
        return verify(self.directory, anchor, public_key)

    # --- writing ----------------------------------------------------------------------------------------------------

    def add(self, forget: Sequence[Record], details: Details, author: Author, **options: Any) -> Added:
        """Make the part of a new request; arguments and errors as of `adding.add_request`."""
        from tempertilt.requests.adding import add_request

        return add_request(self, forget, details, author, **options)

    def revoke(self, name: str, author: Author, *, why: str, keep_files: bool = False) -> Event:
        """Take a request back: its part acts no longer and is deleted, no other part changes.

        Args:
            keep_files: leave the part's files where they are, so that it can be renewed.

        Raises:
            LedgerError: there is no such request, or it does not act.
        """

        def payload(states: Mapping[str, RequestState]) -> dict[str, Any]:
            state = _known(states, name)
            if state.state != ACTIVE:
                raise LedgerError(f"request {name} is {state.state}; only one that is active can be revoked")
            return {"why": why, "files_kept": keep_files, "deletes": [] if keep_files else [name]}

        return self.write("revoke", name, payload, author)

    def renew(self, name: str, author: Author, *, why: str, expires: str | None = None) -> Event:
        """Let a request act until another day, or without end; also one that was revoked with its files kept.

        Args:
            expires: its new last day, as 2027-01-31 (UTC); None = no end.

        Raises:
            LedgerError: there is no such request, its files are gone, or another one about its subject is active and neither
                was added to extend the other.
        """
        if expires is not None:
            parse_day(expires)

        def payload(states: Mapping[str, RequestState]) -> dict[str, Any]:
            state = _known(states, name)
            if not state.has_files:
                raise LedgerError(f"request {name} is {state.state} and its files are gone; add its records as a new request")
            extending = [other.id for other in states.values() if other.details["extends"] == name]
            beside = [state.details["extends"], *extending]
            if state.state != ACTIVE and (other := same_subject(states.values(), state.subject, beside)):
                raise LedgerError(f"request {other} is about the same subject; revoke it first, and renew {name} then")
            return {"why": why, "expires": expires}

        return self.write("renew", name, payload, author)

    def write(
        self,
        kind: str,
        name: str,
        payload: Callable[[Mapping[str, RequestState]], dict[str, Any]],
        author: Author,
        moves: Path | None = None,
    ) -> Event:
        """Add an event, whole or not at all.

        Args:
            payload: is given the requests as they are and returns the event's payload, or raises to refuse. Of its "deletes" the
                parts are deleted.
            moves: a folder that becomes the request's part.
        """
        with locked(self.directory / database.FILE, WRITING):
            signer = author.signer(public_key_of(self.settings))
            _recover(self.directory, signer)
            with database.connect(self.directory) as connection:
                self._migrate(connection, signer)
                with database.writing_transaction(connection):
                    events = database.events_of(connection)
                    content = payload(states_of(events))
                    event = _signed(next_event(events[-1], kind, name, content, author.by, author.at), signer)
                    write_head(self.directory, read_head(self.directory / HEAD).with_pending(event), signer)
                    if moves is not None:
                        moves.rename(make_dir(self.directory / PARTS) / name)
                    database.insert(connection, event)
            _complete(self.directory, event, signer)
        return event

    def _migrate(self, connection: sqlite3.Connection, signer: Signer | None) -> None:
        """Bring an older schema up to date; the head does not name the file's bytes meanwhile."""
        if database.schema_number(connection) < len(database.MIGRATIONS):
            write_head(self.directory, replace(read_head(self.directory / HEAD), database=None), signer)
            database.migrate(connection)

    def recover(self) -> None:
        """Put in order what a killed process has left half-done. Every command of `t3 requests` begins with it.

        Raises:
            LedgerError: the ledger does not end as its head says.
        """
        if os.access(self.directory, os.W_OK):
            with locked(self.directory / database.FILE, WRITING):
                _recover(self.directory, None)
            clear_work(self.directory)

    def key(self, path: Path | None = None) -> Key:
        """The key of the keyed hashes: in the file given, or in the one that `create` was given.

        Raises:
            LedgerError: the file is not there, or holds another key.
        """
        key = Key(path or Path(self.settings["key_file"]))
        if key.check != self.settings["key"]:
            raise LedgerError(f"the key in {str(path or self.settings['key_file'])!r} is not this ledger's")
        return key


def _recover(directory: Path, signer: Signer | None) -> None:
    """Complete or take back the event that the head says is being written; the lock is held."""
    remove_unfinished(directory)
    head, last = read_head(directory / HEAD), database.last_event(directory)
    if head.pending is not None and last.hash == head.pending.hash:
        _complete(directory, last, signer)
    elif last.hash != head.hash:
        place = str(directory / database.FILE)
        raise LedgerError(f"{place!r} does not end as {HEAD} says; see what is wrong with t3 requests verify")
    elif head.pending is not None:
        if head.pending.kind == "add":
            remove_directory(directory / PARTS / head.pending.request)
        _settle(directory, last, signer)


def _complete(directory: Path, event: Event, signer: Signer | None) -> None:
    """What is to be done after an event is in: parts that it deletes, and the head."""
    for name in event.payload.get("deletes", ()):
        remove_directory(directory / PARTS / name)
    _settle(directory, event, signer)


def _settle(directory: Path, last: Event, signer: Signer | None) -> None:
    """Write the head of a ledger that is at rest. A signed one stays as it is where there is no key at hand."""
    if signer is not None or last.signature is None:
        write_head(directory, Head(last.sequence, last.hash, database.file_hash(directory)), signer)


def _signed(event: Event, signer: Signer | None) -> Event:
    return event if signer is None else replace(event, signature=signer.sign(event.hash))


def _known(states: Mapping[str, RequestState], name: str) -> RequestState:
    if name not in states:
        known = f"must be one of {', '.join(states)}" if states else "there is none yet"
        raise LedgerError(f"there is no request {name!r}; {known}")
    return states[name]


def _check_new(directory: Path, key_file: Path) -> None:
    """Raise `LedgerError` unless a ledger can be made in a directory, with its key elsewhere."""
    if (directory / database.FILE).exists():
        raise LedgerError(f"{str(directory)!r} has a ledger already; name another directory")
    own = (READERS, CACHE, WORK, HEAD)
    foreign = [path.name for path in sorted(directory.glob("*")) if path.name not in own and not path.name.startswith(".")]
    if foreign:
        raise LedgerError(f"{str(directory)!r} holds other files ({', '.join(foreign[:5])}); name a new or empty directory")
    if key_file.absolute().is_relative_to(directory):
        raise LedgerError(f"the key file {str(key_file)!r} lies in the ledger, beside what it protects; name another place")


@cache
def _warn_expired(directory: str, name: str, day: str) -> None:
    """Warn of a part that has expired, once in a process."""
    log.warning("%s: request %s expired on %s: it acts no longer; see t3 requests renew", directory, name, day)


def verify(directory: str | Path, anchor: Path | None = None, public_key: str | None = None) -> list[Fault]:
    """As `Ledger.verify`, also of a ledger that is too damaged to be opened."""
    directory = Path(directory)
    if not (directory / database.FILE).is_file() or not os.access(directory, os.W_OK):
        return find_faults(directory, anchor, public_key)
    with locked(directory / database.FILE, WRITING):
        faults, pending = find_faults(directory, anchor, public_key), False
        with suppress(LedgerError):
            pending = read_head(directory / HEAD).pending is not None
            if pending or not faults:  # else nothing is written: what is wrong stays as it is, to be looked at
                _recover(directory, None)
        faults = find_faults(directory, anchor, public_key) if pending else faults
    clear_work(directory)
    return faults
