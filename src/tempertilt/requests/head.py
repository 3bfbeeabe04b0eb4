"""The head: a small file beside the ledger that says how it ends, so that rows missing at the end are found.

`ledger.head` holds the number of events, the hash of the last one and of the ledger file's bytes, and the event that is being
written. A copy that is kept elsewhere is an anchor: whoever holds it can tell that the ledger has only grown since.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tempertilt.errors import LedgerError
from tempertilt.requests.events import Event, canonical
from tempertilt.requests.signing import Signer, is_signed
from tempertilt.storage import write_text

FILE = "ledger.head"


class Pending(NamedTuple):
    """An event that is being written."""

    hash: str
    kind: str
    request: str


@dataclass(frozen=True)
class Head:
    """How the ledger ends.

    Attributes:
        count: number of events.
        hash: of the last one.
        database: SHA-256 of the ledger file; None where it could not be taken.
        pending: an event that is being written, or was when a process was killed.
        signature: Ed25519 over all of these, hex; None without a key.
    """

    count: int
    hash: str
    database: str | None
    pending: Pending | None = None
    signature: str | None = None

    @property
    def signed_text(self) -> str:
        """What the signature is of."""
        return canonical({name: value for name, value in asdict(self).items() if name != "signature"})

    def is_signed_by(self, public_key: str) -> bool:
        """Whether the signature is of this key, hex."""
        return is_signed(self.signed_text, self.signature, public_key)

    def with_pending(self, event: Event) -> Head:
        """The head while an event is being written."""
        return replace(self, pending=Pending(event.hash, event.kind, event.request), signature=None)


def write_head(directory: Path, head: Head, signer: Signer | None = None) -> None:
    """Write the head, whole or not at all, through to the disk."""
    head = replace(head, signature=signer.sign(head.signed_text) if signer else None)
    write_text(directory / FILE, canonical(asdict(head)) + "\n")
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)  # else the event could be on the disk before the head that announces it
    finally:
        os.close(handle)


def read_head(path: Path) -> Head:
    """The head in a file; `LedgerError` if it is missing or not as `write_head` writes it."""
    try:
        text = path.read_text(encoding="ascii")
        values = json.loads(text)
        pending = values["pending"]
        head = Head(**{**values, "pending": None if pending is None else Pending(*pending)})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LedgerError(f"{str(path)!r} cannot be read: {error}; see what is wrong with t3 requests verify") from error
    if canonical(asdict(head)) + "\n" != text:
        raise LedgerError(f"{str(path)!r} is not as tempertilt writes it: it was changed; see t3 requests verify")
    return head
