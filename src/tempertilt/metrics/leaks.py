"""What answers give away: facts to be forgotten, other people's facts in their place, runs of an original's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tempertilt.data.facts import Fact, given_away
from tempertilt.errors import DataError
from tempertilt.metrics.result import MetricResult, clopper_pearson


class Answer(NamedTuple):
    """An answer to a prompt about somebody, and the facts to look for in it.

    Attributes:
        prompt: all text before the answer.
        text: the answer.
        own: the facts that are to be forgotten.
        others: facts of retain records, none of which is right here.
    """

    prompt: str
    text: str
    own: Sequence[Fact]
    others: Sequence[Fact] = ()


def leaked(answer: Answer) -> list[Fact]:
    """The facts to be forgotten that the answer gives away and the prompt does not hold."""
    return _new(answer, answer.own)


def misattributed(answer: Answer) -> list[Fact]:
    """The retained facts that the answer gives and the prompt does not hold; none that is also to be forgotten."""
    own = {form for fact in answer.own for form in fact.forms}
    return _new(answer, [fact for fact in answer.others if not own & set(fact.forms)])


def _new(answer: Answer, facts: Sequence[Fact]) -> list[Fact]:
    known = given_away(facts, answer.prompt)
    return [fact for fact in given_away(facts, answer.text) if fact not in known]


def leak_rate(answers: Sequence[Answer], *, name: str = "leak_rate") -> MetricResult:
    """Share of answers that give away at least one fact that is to be forgotten; `details` has the number of facts."""
    found = [leaked(answer) for answer in answers]
    protocol = "share of answers with a fact that is to be forgotten and not in the prompt, values normalised"
    return _rate(name, found, protocol)


def misattribution(answers: Sequence[Answer], *, name: str = "misattribution") -> MetricResult:
    """Share of answers that give a fact of a retain record as if it were one of those to be forgotten."""
    found = [misattributed(answer) for answer in answers]
    protocol = "share of answers about somebody forgotten with a value of a retain record that is not in the prompt"
    return _rate(name, found, protocol)


def _rate(name: str, found: Sequence[Sequence[Fact]], protocol: str) -> MetricResult:
    if not found:
        raise DataError(f"{name}: no answers; must be at least one")
    hits = sum(map(bool, found))
    return MetricResult(
        name=name,
        value=hits / len(found),
        n=len(found),
        n_missing=0,
        higher_is_better=False,
        interval=clopper_pearson(hits, len(found)),
        per_sample=tuple(float(bool(facts)) for facts in found),
        protocol=f"{protocol}; interval: Clopper-Pearson",
        details={"answers": hits, "facts": sum(map(len, found))},
    )


def longest_common_run(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest run of tokens, one after another, that both sequences hold."""
    tokens = np.asarray(second, dtype=np.int64)
    lengths = np.zeros(len(tokens) + 1, dtype=np.int64)
    longest = 0
    for token in first:
        lengths[1:] = np.where(tokens == token, lengths[:-1] + 1, 0)
        longest = max(longest, int(lengths.max()))
    return longest


def longest_run(texts: Sequence[Sequence[int]], originals: Sequence[Sequence[int]], *, name: str = "longest_run") -> MetricResult:
    """The longest run of its original's tokens in any of some texts, in tokens; `details` has mean and median.

    Args:
        texts: token ids, such as continuations.
        originals: for each text the token ids of its original.
    """
    if not texts or len(texts) != len(originals):
        raise DataError(f"{name}: {len(texts)} texts and {len(originals)} originals; must be as many, and at least one")
    runs = [longest_common_run(text, original) for text, original in zip(texts, originals)]
    return MetricResult(
        name=name,
        value=float(max(runs)),
        n=len(runs),
        n_missing=0,
        higher_is_better=False,
        interval=None,
        per_sample=tuple(map(float, runs)),
        protocol="longest run of tokens that a text has in common with its original, over all texts",
        details={"mean": float(np.mean(runs)), "median": float(np.median(runs))},
    )
