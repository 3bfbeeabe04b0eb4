"""The parts that act, as one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.ledger_parts import PROMPTS, Place, greedy, make_place
from tempertilt.errors import AdapterError, LedgerError
from tempertilt.models.adapter import CONFIG
from tempertilt.models.composed import ComposedLM
from tempertilt.requests import ActivePart, Ledger
from tempertilt.requests.acting import acting_parts, load_composed, load_ledger_base


@pytest.fixture()
def by_hand(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("TEMPERTILT_CACHE", str(tmp_path / "cache"))
    return make_place(tmp_path / "place", tiny_dir)


def test_parts_that_are_loaded_are_not_read_again(by_hand: Place) -> None:
    by_hand.add("a")
    first = acting_parts(by_hand.ledger)
    version = by_hand.add("b")
    (by_hand.ledger.part("a") / CONFIG).write_text("damaged")
    again = acting_parts(by_hand.ledger, loaded=first.parts)
    assert again.version == version and list(again.parts) == ["a", "b"] and again.parts["a"] is first.parts["a"]
    with pytest.raises(AdapterError, match="cannot be read"):
        acting_parts(by_hand.ledger)


def test_an_event_that_comes_in_between_is_seen(by_hand: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand.add("a")
    active, calls = Ledger.active, []

    def interrupted(ledger: Ledger, *args: Any) -> list[ActivePart]:
        parts = active(ledger, *args)
        calls.append(len(parts))
        if len(calls) == 1:
            by_hand.add("b")
        return parts

    monkeypatch.setattr(Ledger, "active", interrupted)
    acting = acting_parts(by_hand.ledger)
    assert (acting.version, list(acting.parts), calls) == (by_hand.ledger.version, ["a", "b"], [1, 2])


def test_the_model_of_a_ledger_and_its_base(by_hand: Place, tmp_path: Path) -> None:
    by_hand.add("a")
    by_hand.add("b", tenant="acme")
    for scope, names in ((None, "ab"), ({"tenant": "other"}, "a")):
        model, tokenizer = load_composed(by_hand.ledger, scope, device="cpu")
        assert greedy(model, tokenizer, PROMPTS[0], 12) == greedy(by_hand.alone(*names), tokenizer, PROMPTS[0], 12)
    other = load_ledger_base(by_hand.ledger, device="cpu")
    with torch.no_grad():
        other.model.get_input_embeddings().weight.add_(1)
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(LedgerError, match="the ledger was made for"):
        load_ledger_base(by_hand.ledger, str(tmp_path / "other"), device="cpu")
    base = load_ledger_base(by_hand.ledger, str(tmp_path / "other"), device="cpu", check_base=False)
    assert ComposedLM(base.model, acting_parts(by_hand.ledger, check_base=False).parts).parts.keys() == {"a", "b"}
