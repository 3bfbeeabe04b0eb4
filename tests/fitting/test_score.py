"""What tells wording from values: n-grams, quantile maps and left-out errors, each against a direct evaluation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from support.direct import example
from tempertilt.fitting.neighbours import documents_of
from tempertilt.fitting.score import NGrams, _facts, left_out_error, map_quantiles


def test_quantiles_are_mapped_to_quantiles() -> None:
    generator = torch.Generator().manual_seed(0)
    known_scores, known_values = torch.randn(500, generator=generator), 3 * torch.randn(500, generator=generator) - 1
    scores = torch.randn(50, generator=generator)
    mapped = map_quantiles(scores, known_scores, known_values)
    values = sorted(known_values.tolist())
    for score, value in zip(scores.tolist(), mapped.tolist()):
        below = sum(known <= score for known in known_scores.tolist())
        assert values[max(0, below - 1)] - 1e-6 <= value <= values[min(499, below)] + 1e-6
    order = scores.argsort()
    assert (mapped[order].diff() >= 0).all()
    ends = map_quantiles(torch.tensor([-9.0, 9.0]), known_scores, known_values)
    assert ends.tolist() == pytest.approx([values[0], values[-1]])


def witten_bell(sequences: list[list[int]], vocab_size: int, context: list[int], token: int) -> float:
    """P(token | context) by the recursion of Witten and Bell, from the longest context down."""
    if context is None:  # type: ignore[comparison-overlap]
        return 1 / vocab_size
    shorter = witten_bell(sequences, vocab_size, context[1:] if context else None, token)  # type: ignore[arg-type]
    n = len(context)
    after = [s[i + n] for s in sequences for i in range(len(s) - n) if s[i : i + n] == context]
    if not after:
        return shorter
    kinds = len(set(after))
    return (after.count(token) + kinds * shorter) / (len(after) + kinds)


def test_ngrams_against_witten_bell() -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 5, 30).tolist() for _ in range(4)]
    ngrams = NGrams(sequences, 7, order=3)
    for _ in range(100):
        context, token = rng.integers(0, 6, int(rng.integers(0, 5))).tolist(), int(rng.integers(0, 7))
        expected = witten_bell(sequences, 7, context[-2:], token)
        assert ngrams.log_prob(context, token) == pytest.approx(math.log(expected), abs=1e-12)
    for context in ([], [1], [1, 2], [6, 6]):
        assert sum(math.exp(ngrams.log_prob(context, token)) for token in range(7)) == pytest.approx(1)


def test_what_is_known_of_a_token_without_a_model() -> None:
    """A prompt 5 6 7 8 and an answer 5 6 7 9: after 5, and after 5 6, the prompt went on otherwise than after 5 6 7."""
    rows = _facts(NGrams([[5, 6, 7, 9]], 10), example([5, 6, 7, 8, 5, 6, 7, 9], 4), [5, 6, 7, 9])
    assert rows[:, 0].tolist() == [1.0] * 4 and rows[:, 7].tolist() == [0, 1, 2, 3]
    assert rows[:, 2].tolist() == [1, 1, 1, 0] and rows[:, 3].tolist() == [0, 0, 0, 0]  # in the prompt, in the answer
    assert rows[:, 4].tolist() == [0, 1, 2, 0] and rows[:, 5].tolist() == [0, 0, 0, 3]  # length where repeated, where not
    first = math.log((1 + 4 * 0.1) / 8)  # one of four tokens of four kinds
    assert rows[0, 1] == pytest.approx(first) and rows[0, 6] == 0 and rows[1, 6] == rows[1, 1]


def test_error_of_records_that_were_left_out() -> None:
    rng = np.random.default_rng(0)
    parts = [replace(example(range(6), 2), document=f"d{i // 2}") for i in range(12)]
    facts = torch.from_numpy(np.column_stack([np.ones(48), rng.normal(size=(48, 2))]))
    truth = torch.from_numpy(rng.normal(size=48)).float()
    fold = np.repeat([i // 2 % 4 for i in range(12)], 4)
    squares = []
    for number in range(4):
        solution = np.linalg.lstsq(facts.numpy()[fold != number], truth.double().numpy()[fold != number], rcond=None)[0]
        squares += list((facts.numpy()[fold == number] @ solution - truth.numpy()[fold == number]) ** 2)
    assert left_out_error(facts, truth, documents_of(parts)) == pytest.approx(np.mean(squares), rel=1e-4)
    assert left_out_error(facts, truth, np.array(["one"] * 48)) == math.inf
