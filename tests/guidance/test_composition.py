"""The composition on tensors: which gates are looked at, what is remembered, and who speaks, against loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from support.gates import random_gates, reply_token
from tempertilt.guidance.composition import Composition, Screen
from tempertilt.guidance.gate import EvidenceGate, Gates, Reader, TurnStarts
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.pooling import Memory, scan
from tempertilt.guidance.reply import Reply

D, P = 24, 16
READER = Reader(
    torch.randn(D, generator=torch.Generator().manual_seed(1)), torch.randn(P, D, generator=torch.Generator().manual_seed(2))
)


def random_gate(seed: int, reader: Reader = READER, count: int = 40, **options: Any) -> EvidenceGate:
    generator = torch.Generator().manual_seed(seed)
    exemplars = F.normalize(torch.randn(count, len(reader.matrix), generator=generator), dim=-1)
    margins = torch.rand(count, generator=generator) * 1.2 - 0.3
    return EvidenceGate(reader, exemplars, margins, **{"threshold": 0.6, "weak_threshold": 0.3} | options)


def part(seed: int, **options: Any) -> Guidance:
    torch.manual_seed(seed)
    gates = Gates(2, random_gate(seed), random_gate(seed + 100), **options)
    return Guidance(GuidanceHead(D, 3, [1, 2]), gates, pooling="last")


@pytest.mark.parametrize("weak", [0.3, None])
def test_no_gate_is_missed_and_evidence_is_that_of_the_gate_alone(weak: float | None) -> None:
    gates = {number: random_gate(number, weak_threshold=weak) for number in (2, 5, 7)}
    screen = Screen(gates)
    exemplars = torch.cat([gate.exemplars for gate in gates.values()])
    generator = torch.Generator().manual_seed(9)
    looked_at = events = 0
    for noise in (0.0, 0.1, 0.2, 0.4, 1.0, 3.0):
        wanted = exemplars + noise * torch.randn(exemplars.shape, generator=generator) / P**0.5
        states = READER.mean + wanted @ torch.linalg.pinv(READER.matrix).T
        for state in states:
            evidence = screen.evidence(state[None])
            for number, gate in gates.items():
                alone = gate.evidence(state[None])
                happens = bool(alone > gate.lowest_threshold)
                assert number in evidence or not happens
                assert number not in evidence or torch.equal(evidence[number], alone)
                looked_at += number in evidence
                events += happens
    assert 0 < events < looked_at < 2 * events  # few are looked at in vain
    rows = torch.cat([state[None] for state in states])
    assert set(screen.evidence(rows)) == {n for state in states for n in screen.evidence(state[None])}


def test_events_are_those_of_each_part_alone() -> None:
    other = Reader(READER.mean + 1, READER.matrix)
    turns = TurnStarts([3], torch.zeros(1, P), -1.0)
    parts = {"a": part(1, turns=turns), "b": part(2), "c": part(3, turns=turns), "d": part(4)}
    parts["d"] = Guidance(
        parts["d"].head, Gates(2, random_gate(4, other), None, TurnStarts([4], torch.zeros(1, P), -1.0)), pooling="mean"
    )
    model = Composition(parts)
    assert len(model.asked) == 2 and len(model.said) == 1
    assert parts["a"].gates.asked.reader is parts["c"].gates.asked.reader  # type: ignore[union-attr]
    last, lower = (torch.randn(2, 30, D, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6))
    ids = torch.randint(2, 6, (2, 30), generator=torch.Generator().manual_seed(7))
    new = model.observe(last, lower, ids)
    alone = [each.observe(last, lower, ids) for each in parts.values()]
    assert new.events is not None and torch.equal(new.events, torch.cat([each.events for each in alone], -1))  # type: ignore[misc]
    assert torch.equal(new.projected, alone[3].projected)
    assert new.events.any(0).any(0).sum() > 10
    context = model.read(scan(new.projected, None, new.events))
    for number, (each, own) in enumerate(zip(parts.values(), alone)):
        expected = each.read(scan(own.projected, None, own.events))
        assert context.gate is not None and torch.equal(context.gate[..., number], expected.gate)  # type: ignore[arg-type]
    without = model.observe(last, lower).events
    assert without is not None and not without.unflatten(-1, (4, 5))[..., 1].any()


def test_who_speaks() -> None:
    """Every combination of who has opened when and of what has been said, by the words of the rule."""
    first, second = ([7], [1, 2, 9], [5, 1, 9]), ([7], [1, 3, 9], [6, 3, 9])
    forms = (first, None, second, first)
    parts = {
        str(i): Guidance(GuidanceHead(D, 3, [1, 2]), random_gates(D, seed=i), None, "last", form and Reply("", *form))
        for i, form in enumerate(forms)
    }
    model = Composition(parts)
    assert len(model.replies) == 2 and model.reply_of.tolist() == [0, -1, 1, 0]
    for text in ([], [7], [7, 1], [7, 1, 2], [7, 1, 3], [6], [6, 3], [5, 1]):
        ids = torch.tensor([[20, 21, 22, *text]])
        position = torch.arange(1, ids.shape[1] + 1)[None]
        ends = torch.cat([follow(position, torch.zeros(1, 2)) for follow in model.follows(ids)], -1)
        expected = [form and reply_token(ids[0].tolist(), *form) for form in forms]
        for openings in torch.cartesian_prod(*[torch.arange(3)] * 4).tolist():
            latest = torch.zeros(1, 1, 4, 5)
            latest[..., 0] = torch.tensor(openings)
            context = model.read(Memory(torch.zeros(1, 1, 0), position[:, -1:], latest.flatten(-2), ends[:, -1:]))
            assert context.gate is not None and context.gate[0, 0].tolist() == [float(opening > 0) for opening in openings]
            order = [
                (answer[1], opening, -i, answer[0])
                for i, (answer, opening) in enumerate(zip(expected, openings))
                if answer and opening
            ]
            assert context.reply is not None and context.reply.item() == (max(order)[-1] if order else -1)


def test_a_model_of_no_parts_remembers_nothing() -> None:
    none = Composition({})
    logits = torch.randn(2, 5)
    assert not none.needs_memory and none.layer is None and none.guide(logits, None, None, None) is logits
