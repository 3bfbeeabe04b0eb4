"""Who writes an event, and the Ed25519 key (RFC 8032) with which it may be signed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from tempertilt.data.lines import half_pair
from tempertilt.errors import ConfigError, LedgerError, MissingExtraError

ACTOR = "T3_ACTOR"


class Signer(Protocol):
    """What signs."""

    public_key: str

    def sign(self, text: str) -> str:
        """The signature of a text, hex."""


@dataclass(frozen=True)
class Author:
    """The person who writes an event, when, and with which key.

    Attributes:
        by: the person.
        at: another time than now, with its zone.
        sign_key: PEM file of an Ed25519 private key.
    """

    by: str
    at: datetime | None = None
    sign_key: Path | None = None

    def __post_init__(self) -> None:
        if not self.by.strip():
            raise ConfigError("the person who does this is not named; must be a name or an account")
        if fault := half_pair(self.by):
            raise ConfigError(f"the person who does this, {self.by!r}, has {fault}; must be text")

    @classmethod
    def from_environment(cls, by: str | None = None, at: datetime | None = None, sign_key: Path | None = None) -> Author:
        """The person named, or the one of `$T3_ACTOR`; `ConfigError` where there is none."""
        person = by or os.environ.get(ACTOR)
        if not person:
            raise ConfigError(f"--by is needed: the person who does this; or name them in the environment variable {ACTOR}")
        return cls(person, at, sign_key)

    def signer(self, public_key: str | None) -> Signer | None:
        """What signs for this person, in a ledger that is signed with a key (hex) or not at all.

        Raises:
            LedgerError: the ledger is signed and there is no key, or another one; or it is not, and there is one.
        """
        made = None if self.sign_key is None else Ed25519Signer(self.sign_key)
        if made is None and public_key is not None:
            raise LedgerError("the ledger is signed: name the file of its private key with --sign-key")
        if made is not None and made.public_key != public_key:
            wanted = "it is not signed" if public_key is None else f"its public key is {public_key}"
            raise LedgerError(f"the key in {str(self.sign_key)!r} is not the ledger's: {wanted}")
        return made


class Ed25519Signer:
    """A private key.

    Args:
        path: PEM file, as `openssl genpkey -algorithm ed25519` writes it.
    """

    def __init__(self, path: Path) -> None:
        serialization, ed25519, _ = _cryptography()
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"--sign-key {str(path)!r} cannot be read: {error}") from error
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise ConfigError(f"--sign-key {str(path)!r} is a {type(key).__name__}; must be an Ed25519 key without a password")
        self._key = key
        self.public_key = key.public_key().public_bytes_raw().hex()

    def sign(self, text: str) -> str:
        """The signature of a text, hex."""
        return str(self._key.sign(text.encode()).hex())


def is_signed(text: str, signature: str | None, public_key: str) -> bool:
    """Whether a signature (hex) of a text is that of a public key (hex)."""
    _, ed25519, wrong = _cryptography()
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature or ""), text.encode())
    except (wrong, ValueError):
        return False
    return True


def public_key_of(payload: Mapping[str, Any]) -> str | None:
    """The public key (hex) that the first event names, None for a ledger that is not signed."""
    key = payload.get("public_key")
    return None if key is None else str(key)


def _cryptography() -> tuple[Any, Any, type[Exception]]:
    """What of the package `cryptography` is used: PEM files, Ed25519 keys, and the error of a wrong signature."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtraError("cryptography", "signing", "a signed ledger") from error
    return serialization, ed25519, InvalidSignature
