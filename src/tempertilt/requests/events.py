"""Events: what the ledger holds, each with the hash of the one before it.

The hash of an event is the SHA-256 of its content as canonical JSON: keys in order, no spaces, ASCII. The content is every column
but `hash` and `signature`; `previous` is the hash of the event before, null for the first.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

from tempertilt.environment import VERSION
from tempertilt.errors import LedgerError

KINDS = ("init", "add", "revoke", "renew")


def canonical(value: Any) -> str:
    """The one JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes:
        sequence: its number, from 1.
        time: UTC, as 2026-01-31T09:30:00.000Z.
        by: the person who did it.
        kind: one of `KINDS`.
        request: the request's name; empty for "init".
        payload: what was done, JSON-ready.
        version, machine: of tempertilt, and where it ran.
        previous: hash of the event before; None for the first.
        hash: of all of these.
        signature: Ed25519 over the hash, hex; None without a key.
    """

    sequence: int
    time: str
    by: str
    kind: str
    request: str
    payload: dict[str, Any]
    version: str
    machine: str
    previous: str | None
    hash: str = ""
    signature: str | None = None

    @property
    def content(self) -> dict[str, Any]:
        """What the hash is of."""
        return {name: value for name, value in asdict(self).items() if name not in ("hash", "signature")}

    @property
    def digest(self) -> str:
        """The hash that the content has."""
        return hashlib.sha256(canonical(self.content).encode("ascii")).hexdigest()

    @property
    def row(self) -> tuple[Any, ...]:
        """The columns of the event's row, in the order of the fields."""
        return tuple(canonical(value) if name == "payload" else value for name, value in asdict(self).items())

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Event:
        """The event of a row; `ValueError` or `TypeError` if the payload is not JSON of an object."""
        payload = json.loads(row["payload"])
        if not isinstance(payload, dict):
            raise ValueError("its payload is not an object")
        return cls(**{**row, "payload": payload})


def next_event(last: Event | None, kind: str, request: str, payload: Mapping[str, Any], by: str, at: datetime | None) -> Event:
    """The event after `last`, now or at another time, without a signature."""
    event = Event(
        sequence=1 if last is None else last.sequence + 1,
        time=time_text(at or datetime.now(timezone.utc)),
        by=by,
        kind=kind,
        request=request,
        payload=dict(payload),
        version=VERSION,
        machine=socket.gethostname(),
        previous=None if last is None else last.hash,
    )
    return replace(event, hash=event.digest)


def time_text(at: datetime) -> str:
    """A time in UTC, to the millisecond; `LedgerError` for one that has no time zone."""
    if at.tzinfo is None:
        raise LedgerError(f"the time {at.isoformat()} has no time zone; must be as 2026-01-31T09:30:00+00:00")
    return at.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
