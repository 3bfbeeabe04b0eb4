"""The gates against their definitions: evidence, events, and the rule by which they open and close."""

from __future__ import annotations

import math

import pytest
import torch

from support.gates import expected_openings, gate_at, random_gates
from tempertilt.errors import AdapterError, ConfigError
from tempertilt.guidance.gate import EVENTS, EvidenceGate, Gates, Reader, TurnStarts
from tempertilt.guidance.pooling import scan

D, P = 8, 5


def make_gate(seed: int = 0, *, threshold: float = 0.5, **others: float | None) -> EvidenceGate:
    generator = torch.Generator().manual_seed(seed)
    reader = Reader(torch.randn(D, generator=generator), torch.randn(P, D, generator=generator))
    exemplars = torch.nn.functional.normalize(torch.randn(4, P, generator=generator), dim=-1)
    thresholds = {"threshold": threshold, "weak_threshold": 0.2} | others
    return EvidenceGate(reader, exemplars, torch.rand(4, generator=generator) / 2, **thresholds)  # type: ignore[arg-type]


def test_evidence_by_its_definition() -> None:
    gate, x = make_gate(), torch.randn(D, generator=torch.Generator().manual_seed(1))
    direction = gate.reader.double() @ (x.double() - gate.mean.double())
    direction /= direction.norm()
    expected = max((float(f.double() @ direction) - float(b)) / (1 - float(b)) for f, b in zip(gate.exemplars, gate.margins))
    assert float(gate.evidence(x)) == pytest.approx(expected, abs=1e-5)
    assert gate.evidence(x.expand(2, 3, D)).shape == (2, 3)


def test_events_are_evidence_above_thresholds_and_turns() -> None:
    turns = TurnStarts([7], torch.zeros(1, P), -1.0)
    gates = Gates(1, make_gate(0), make_gate(1, threshold=0.3, weak_threshold=0.1, sure_threshold=0.5), turns)
    generator = torch.Generator().manual_seed(2)
    last, lower = torch.randn(60, D, generator=generator), torch.randn(60, D, generator=generator)
    sure = 0
    ids = torch.tensor([7 if i % 9 == 0 else 3 for i in range(60)])
    events = gates.events(gates.evidence(last, lower, ids))
    assert events.shape == (60, EVENTS)
    for i in range(60):
        asked, said, closes = float(gates.asked.evidence(lower[i])), float(gates.said.evidence(last[i])), i % 9 == 0
        expected = [asked > 0.5 or said > 0.5, closes, asked > 0.2, said > 0.3, said > 0.1]
        sure += said > 0.5 >= asked
        assert events[i].tolist() == [event if n == 1 else event and not closes for n, event in enumerate(expected)]
    assert events.any(0).all() and not events.all(0).any() and sure
    alone = Gates(1, make_gate(0, weak_threshold=None)).events(gates.evidence(last, lower, None))
    assert not alone[:, 1:].any() and alone[:, 0].any()


@pytest.mark.parametrize("close_after", [0, 5])
def test_the_rule_of_opening_and_closing(close_after: int) -> None:
    gates = random_gates(D, close_after=close_after)
    generator = torch.Generator().manual_seed(3)
    values = set()
    for turns in (0.0, 0.12):
        for _ in range(60):
            events = torch.rand(50, EVENTS, generator=generator) < torch.tensor([0.04, turns, 0.08, 0.08, 0.06])
            events &= ~events[:, 1:2] | torch.tensor([False, True, False, False, False])
            memory = scan(torch.zeros(1, 50, 0), None, events[None])
            found = gates.value(memory.position, memory.latest)[0].tolist()
            assert found == expected_openings(events.tolist(), close_after)
            values |= set(found)
    assert values == {0.0, 1.0}


def test_a_case_for_each_sentence_of_the_rule() -> None:
    o, c, n, s, w = ([i == k for i in range(EVENTS)] for k in range(EVENTS))
    nothing = [False] * EVENTS

    def after(*events: list[bool]) -> list[float]:
        memory = scan(torch.zeros(1, len(events), 0), None, torch.tensor([events]))
        return random_gates(D).value(memory.position, memory.latest)[0].tolist()

    assert after(nothing, o, nothing) == [0, 1, 1]
    assert after(n, nothing, s) == [0, 0, 1]
    assert after(s, n) == [0, 1] and after(s, s, w) == [0, 0, 0] and after(n, c, s) == [0, 0, 0]
    assert after(o, c, nothing, w, nothing, c) == [1, 0, 0, 1, 1, 0]
    assert after(c, w, w) == [0, 0, 0]


def test_turns_are_a_token_in_a_state() -> None:
    header = torch.nn.functional.normalize(torch.randn(1, P), dim=-1)
    turns = TurnStarts([4, 9], header, 0.5)
    ids = torch.tensor([4, 9, 4, 5])
    directions = torch.cat([header, header, -header, header])
    assert turns.found(ids, directions).tolist() == [True, True, False, False]


def test_gates_are_read_back_as_they_were_stored() -> None:
    turns = TurnStarts([4], torch.nn.functional.normalize(torch.ones(1, P), dim=-1), 0.3)
    gates = Gates(2, make_gate(0), make_gate(1, weak_threshold=None, sure_threshold=0.8), turns, 9)
    older = Gates(2, make_gate(0), make_gate(1)).settings
    assert "sure_threshold" not in older["said"] and gates.settings["said"]["sure_threshold"] == 0.8
    stored = gates.tensors()
    again = Gates.from_tensors(stored, gates.settings)
    assert again.settings == gates.settings and all(torch.equal(a, b) for a, b in zip(again.tensors().values(), stored.values()))
    x = torch.randn(50, D)
    torch.testing.assert_close(again.asked.evidence(x), gates.asked.evidence(x), atol=3e-2, rtol=0)
    assert stored["gate.asked.exemplars"].dtype == torch.int8
    with pytest.raises(AdapterError, match=r"lacks the tensors gate\.said\.margins"):
        Gates.from_tensors({name: t for name, t in stored.items() if name != "gate.said.margins"}, gates.settings)
    with pytest.raises(AdapterError, match="cannot be read: KeyError"):
        Gates.from_tensors(stored, {"layer": 1})


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(AdapterError, match="do not fit each other"):
        EvidenceGate(Reader(torch.zeros(3), torch.eye(4)), torch.eye(4), torch.zeros(4), threshold=0.5)
    for broken in ({"threshold": math.nan}, {"weak": math.inf}, {"sure": math.nan}):
        with pytest.raises(ConfigError, match="must be numbers"):
            gate_at(torch.eye(3), **broken)
    with pytest.raises(ConfigError, match="layer is 0"):
        Gates(0, gate_at(torch.eye(3)))
