"""Exemplars that cover the forget texts: by a loop, and what they hear."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tempertilt.fitting.exemplars import Candidates, find_candidates
from tempertilt.fitting.token_states import TokenStates
from tempertilt.guidance.gate import Reader

D = 16


def directions(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, D, generator=torch.Generator().manual_seed(seed)), dim=-1)


def near(state: torch.Tensor, by: float, seed: int) -> torch.Tensor:
    return F.normalize(state + by * directions(1, seed)[0], dim=-1)


@pytest.fixture()
def texts() -> TokenStates:
    """Eight questions of two documents: the name of the document, a word of the question alone, and words that all have."""
    common, names, words = directions(4, 1), directions(2, 2), directions(8, 3)
    said = [[*common[:2], names[i // 4], words[i], *common[2:], common[0]] for i in range(8)]
    states = [torch.stack([near(state, 0.05, 10 * i + j) for j, state in enumerate(row)]) for i, row in enumerate(said)]
    return TokenStates(states, ["f"] * 4 + ["g"] * 4, [6] * 8)


READER = Reader(torch.zeros(D), torch.eye(D))


def found(texts: TokenStates, per_part: int = 1) -> Candidates:
    return find_candidates(texts, TokenStates([directions(4, 1)], ["r"]), READER, per_part, cover=True)


def evidence(candidates: Candidates, margins: torch.Tensor, row: int, state: torch.Tensor) -> float:
    margin = float(margins[row])
    return (float(candidates.directions[row] @ state) - margin) / max(1 - margin, 0.1)


def test_parts_that_a_candidate_is_heard_in(texts: TokenStates) -> None:
    """The highest similarity to a token of the part, if the text is of the candidate's own document."""
    candidates = found(texts)
    assert candidates.heard is not None and candidates.heard.shape == (len(candidates.directions), 16)
    for row, direction in enumerate(candidates.directions):
        own = texts.documents[int(candidates.texts[row])]
        for i, states in enumerate(texts.states):
            for asked, part in ((1, states[:6]), (0, states[6:])):
                expected = float((part @ direction).max()) if texts.documents[i] == own else -1.0
                assert float(candidates.heard[row, 2 * i + asked]) == pytest.approx(expected, abs=1e-5)


def test_what_covers_most_is_taken_first_by_a_loop(texts: TokenStates) -> None:
    candidates = found(texts, per_part=2)
    margins = 0.4 + 0.3 * torch.rand(len(candidates.directions), generator=torch.Generator().manual_seed(0))
    parts = [(i, states[:6] if asked else states[6:]) for i, states in enumerate(texts.states) for asked in (0, 1)]

    def covers(row: int, part: int) -> bool:
        text, states = parts[part]
        own = texts.documents[int(candidates.texts[row])] == texts.documents[text]
        return own and max(evidence(candidates, margins, row, state) for state in states) >= 0.9

    need, left, expected = [2] * len(parts), set(range(len(margins))), []
    while True:
        gains = {row: sum(need[part] > 0 and covers(row, part) for part in range(len(parts))) for row in left}
        gains = {row: gain for row, gain in gains.items() if gain}
        if not gains:
            break
        best = max(gains, key=lambda row: gains[row] - (max(float(margins[row]), float(candidates.elsewhere[row])) + 1) / 4)
        expected.append(best)
        need = [count - (count > 0 and covers(best, part)) for part, count in enumerate(need)]
        left = {row for row in left if row != best and evidence(candidates, margins, best, candidates.directions[row]) < 0.9}
    assert candidates.select(margins, 2, 100).tolist() == expected and len(expected) == 4
    assert candidates.select(margins, 2, 3).tolist() == expected[:3]


def test_a_name_comes_before_the_words_of_one_question(texts: TokenStates) -> None:
    """Also where those words are more special than the name."""
    candidates = found(texts)
    names = directions(2, 2)
    margins = torch.where((candidates.directions @ names.T).amax(1) > 0.9, 0.5, 0.1)
    margins[(candidates.directions @ directions(4, 1).T).amax(1) > 0.9] = 0.95
    chosen = candidates.select(margins, 1, 2)
    assert sorted((candidates.directions[chosen] @ names.T).argmax(1).tolist()) == [0, 1]
    assert float((candidates.directions[chosen] @ names.T).amax(1).min()) > 0.9
    alone = candidates._replace(heard=None).select(margins, 1, 2)
    assert float((candidates.directions[alone] @ names.T).amax()) < 0.9


def test_what_has_its_like_in_retained_text_is_no_exemplar(texts: TokenStates) -> None:
    candidates = found(texts)
    margins = torch.full((len(candidates.directions),), 0.95)
    assert candidates.select(margins, 1, 100).tolist() == []
