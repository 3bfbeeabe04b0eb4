"""What follows at the nearest retain contexts, against a direct evaluation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tempertilt.data.examples import Example
from tempertilt.fitting import neighbours
from tempertilt.fitting.neighbours import FLOOR, LEAST_SHARE, SCALE, Contexts, Neighbourhood, contexts_of


def contexts(count: int, seed: int, documents: list[str] | None = None, vocab: int = 7) -> Contexts:
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randn(count, 12, generator=generator)
    tokens = torch.randint(vocab, (count,), generator=generator)
    return Contexts(lower, tokens, np.array(documents or [f"{seed} {i}" for i in range(count)], str))


def test_facts_are_those_of_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "NEAREST", 5)
    monkeypatch.setattr(neighbours, "LOOKED", 4)
    retain, asked = contexts(40, 1), contexts(9, 2)
    hood = Neighbourhood(retain)
    found = hood.facts(asked)
    reader = hood._reader
    for row in range(9):
        similarity = (reader.directions(retain.lower) @ reader.directions(asked.lower[row])).tolist()
        order = sorted(range(40), key=lambda i: -similarity[i])[:5]
        weights = [math.exp((similarity[i] - similarity[order[0]]) / SCALE) for i in order]
        shares = [weight / sum(weights) for weight in weights]
        share = sum(part for i, part in zip(order, shares) if retain.tokens[i] == asked.tokens[row])
        entropy = -sum(part * math.log(max(part, 1e-9)) for part in shares)
        expected = [math.log((1 - LEAST_SHARE) * share + FLOOR), similarity[order[0]], entropy]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_context_that_is_there_says_what_follows_unless_its_document_is_the_same() -> None:
    retain = contexts(40, 1)
    hood = Neighbourhood(retain)
    elsewhere = hood.facts(retain._replace(documents=np.array([f"other {i}" for i in range(40)])))
    assert float(elsewhere[:, 1].min()) > 0.999 and float(elsewhere[:, 0].exp().min()) > 0.5
    same = hood.facts(retain)
    assert float(same[:, 1].max()) < 0.999


def test_few_contexts_of_many_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MOST", 10)
    found = Neighbourhood(contexts(40, 1)).facts(contexts(3, 2))
    assert found.shape == (3, 3) and bool(found.isfinite().all())


def test_contexts_are_where_tokens_are_predicted() -> None:
    ids, scored = np.array([5, 6, 7, 8], np.int32), np.array([False, False, True, True])
    states = torch.arange(8.0).reshape(4, 2)
    made = contexts_of(
        [Example(ids, scored, "someone", "here", 0), Example(ids, scored, "other", "here", 1)], [states, states + 10]
    )
    assert made.tokens.tolist() == [7, 8, 7, 8] and made.documents.tolist() == ["someone"] * 2 + ["other"] * 2
    assert made.lower.tolist() == [[2, 3], [4, 5], [12, 13], [14, 15]]
