"""A signed ledger: each event and the head, checked with the cryptography package alone."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from _ledgers import OFFICER, PERSONS, Place, new_ledger
from ledger_edits import forge_chain
from tempertilt.errors import ConfigError, LedgerError, MissingExtraError
from tempertilt.requests import Author
from tempertilt.requests import ledger as module
from tempertilt.requests.ledger import verify


def write_key(path: Path, key: Any = None) -> Path:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key = key or ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return path


def public_key(path: Path) -> Any:
    return serialization.load_pem_private_key(path.read_bytes(), None).public_key()  # type: ignore[union-attr]


@pytest.fixture()
def signed(made: Place, tmp_path: Path) -> tuple[Place, Author]:
    """A ledger with one request, and who signs it."""
    author = replace(OFFICER, sign_key=write_key(tmp_path / "sign.pem"))
    place = new_ledger(tmp_path, made.base, author=author)
    place.add("REQ-1", PERSONS[0], author)
    return place, author


def test_every_event_and_the_head_are_signed(signed: tuple[Place, Author]) -> None:
    place, author = signed
    assert author.sign_key is not None and place.ledger.verify() == []
    key = public_key(author.sign_key)
    rows = sqlite3.connect(place.directory / "ledger.sqlite").execute("SELECT hash, signature FROM events").fetchall()
    assert len(rows) == 2
    for digest, signature in rows:
        key.verify(bytes.fromhex(signature), digest.encode())
    head = json.loads((place.directory / "ledger.head").read_text())
    signature = head.pop("signature")
    key.verify(bytes.fromhex(signature), json.dumps(head, sort_keys=True, separators=(",", ":")).encode())


def test_who_has_not_the_key_cannot_write(signed: tuple[Place, Author], tmp_path: Path) -> None:
    place, author = signed
    with pytest.raises(LedgerError, match="the ledger is signed: name the file of its private key with --sign-key"):
        place.ledger.revoke("REQ-1", OFFICER, why="withdrawn")
    other = replace(author, sign_key=write_key(tmp_path / "other.pem"))
    with pytest.raises(LedgerError, match="is not the ledger's: its public key is"):
        place.add("REQ-2", PERSONS[1], other)
    place.ledger.revoke("REQ-1", author, why="withdrawn")
    assert place.ledger.verify() == [] and place.ledger.active() == []


def test_a_forged_chain_with_a_forged_head_is_found(signed: tuple[Place, Author], tmp_path: Path) -> None:
    """Without a signature nothing would show: everything that hashes can show is made anew."""
    place, _ = signed
    forge_chain(place.directory, random.Random(0))
    last = place.ledger.events()[-1]
    database = hashlib.sha256((place.directory / "ledger.sqlite").read_bytes()).hexdigest()
    head = json.loads((place.directory / "ledger.head").read_text()) | {"hash": last.hash, "database": database}
    (place.directory / "ledger.head").write_text(json.dumps(head, sort_keys=True, separators=(",", ":")) + "\n")
    faults = [str(fault) for fault in verify(place.directory)]
    assert faults and all("signature is missing or wrong" in fault for fault in faults)
    assert "ledger.head: its signature is missing or wrong" in faults


def test_a_ledger_made_anew_with_another_key_is_found_by_the_public_key(signed: tuple[Place, Author], tmp_path: Path) -> None:
    place, author = signed
    assert author.sign_key is not None
    wanted = public_key(author.sign_key).public_bytes_raw().hex()
    assert place.ledger.verify(public_key=wanted) == []
    shutil.rmtree(place.directory)
    other = replace(author, sign_key=write_key(tmp_path / "other.pem"))
    made = new_ledger(tmp_path, place.base, author=other)
    assert made.ledger.verify() == []
    assert any("names the public key" in str(fault) for fault in made.ledger.verify(public_key=wanted))


def test_a_killed_event_of_a_signed_ledger_is_completed_by_who_has_the_key(
    signed: tuple[Place, Author], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, author = signed

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_complete", killed)
    with pytest.raises(KeyboardInterrupt):
        place.ledger.revoke("REQ-1", author, why="withdrawn")
    monkeypatch.undo()
    assert place.ledger.verify() == [] and not place.ledger.part("REQ-1").exists()
    place.add("REQ-2", PERSONS[1], author)
    head = json.loads((place.directory / "ledger.head").read_text())
    assert place.ledger.verify() == [] and head["pending"] is None and head["count"] == 4


def test_keys_that_are_none(made: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LedgerError, match="is not the ledger's: it is not signed"):
        made.ledger.revoke("REQ-0", replace(OFFICER, sign_key=write_key(tmp_path / "sign.pem")), why="withdrawn")
    curve = write_key(tmp_path / "curve.pem", ec.generate_private_key(ec.SECP256R1()))
    for path, fault in ((tmp_path / "absent.pem", "cannot be read"), (curve, "must be an Ed25519 key")):
        with pytest.raises(ConfigError, match=fault):
            made.ledger.revoke("REQ-0", replace(OFFICER, sign_key=path), why="withdrawn")
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tempertilt\[signing\]'"):
        made.ledger.revoke("REQ-0", replace(OFFICER, sign_key=tmp_path / "sign.pem"), why="withdrawn")


def test_a_signed_ledger_is_not_verified_without_the_package(
    signed: tuple[Place, Author], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tempertilt\[signing\]'"):
        signed[0].ledger.verify()
