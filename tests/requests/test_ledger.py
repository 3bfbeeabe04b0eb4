"""A ledger's life: what is added, revoked, renewed, and which parts act."""

from __future__ import annotations

from support.ledgers import Place
from tempertilt.models.adapter import load_adapter


def test_first(place: Place) -> None:
    ledger = place.ledger
    assert [part.request_id for part in ledger.active()] == ["REQ-1", "REQ-2"]
    for part in ledger.active():
        assert load_adapter(part.directory).gates is not None
    assert ledger.verify() == []
