"""Keyed hashes of records and persons: HMAC-SHA256 (RFC 2104) with a key that the user holds.

Without the key nobody can find out from the ledger whether a record is in it, not even by trying; with it, whoever has the record
can. Texts are compared as `data.facts.normalise` has them: case, accents, punctuation and spaces do not count.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from tempertilt.data.facts import normalise
from tempertilt.data.records import Record
from tempertilt.errors import LedgerError
from tempertilt.requests.events import canonical

BYTES = 32


class Key:
    """The key in a file.

    Args:
        path: holds 64 hex digits.

    Raises:
        LedgerError: it is not there, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._bytes = bytes.fromhex(path.read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise LedgerError(
                f"the key file {str(path)!r} cannot be read: {error}; must be the one that t3 requests init has made (--key-file)"
            ) from error
        if len(self._bytes) != BYTES:
            raise LedgerError(f"the key file {str(path)!r} holds {len(self._bytes)} bytes; must be {BYTES}, in hex")

    @classmethod
    def make(cls, path: Path) -> Key:
        """The key in a file, which is made if it is not there; only its owner may read it."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return cls(path)

    @property
    def check(self) -> str:
        """What tells this key from another one and says nothing of it."""
        return self._hash("key", "tempertilt")[:16]

    def record(self, record: Record) -> str:
        """The hash of a record: of what is asked and answered in it."""
        turns = [(message.role, message.content) for message in record.messages if message.role != "system"]
        parts = turns or [("user", record.prompt), ("assistant", record.answer)]
        return self._hash("record", *([role, normalise(text)] for role, text in parts))

    def records(self, records: Sequence[Record]) -> list[str]:
        """The hashes of several records, sorted, so that their order says nothing."""
        return sorted({self.record(record) for record in records})

    def set(self, records: Sequence[Record]) -> str:
        """One hash of a set of records."""
        return self._hash("set", *self.records(records))

    def subject(self, name: str) -> str:
        """The hash of a person's name."""
        return self._hash("subject", normalise(name))

    def _hash(self, kind: str, *parts: object) -> str:
        return hmac.new(self._bytes, canonical([kind, *parts]).encode("ascii"), hashlib.sha256).hexdigest()
