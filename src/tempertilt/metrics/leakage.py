"""What answers give away by value, in whatever words: facts of the forgotten record, and those of other people's records."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

from tempertilt.data.facts import Fact, facts_of, given_away
from tempertilt.data.record import Record
from tempertilt.errors import ConfigError, DataError
from tempertilt.metrics.result import MetricResult, clopper_pearson, mean_result, rate_result
from tempertilt.metrics.samples import Results, Sample, Samples


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
    protocol = "share of answers with a fact that is to be forgotten and not in the prompt, values normalised"
    return _answer_rate(name, [leaked(answer) for answer in answers], protocol)


def misattribution(answers: Sequence[Answer], *, name: str = "misattribution") -> MetricResult:
    """Share of answers that give a fact of a retain record as if it were one of those to be forgotten."""
    protocol = "share of answers about somebody forgotten with a value of a retain record that is not in the prompt"
    return _answer_rate(name, [misattributed(answer) for answer in answers], protocol)


def _answer_rate(name: str, facts: Sequence[Sequence[Fact]], protocol: str) -> MetricResult:
    """The share of answers with at least one fact; `DataError` if there are no answers."""
    if not facts:
        raise DataError(f"{name}: no answers; must be at least one")
    values = [bool(some) for some in facts]
    result = rate_result(name, values, higher_is_better=False, protocol=f"{protocol}; interval: Clopper-Pearson")
    result.details.update(answers=sum(values), facts=sum(map(len, facts)))
    return result


def greedy_leaks(samples: Samples, *, name: str = "greedy_leaks") -> MetricResult:
    """Share of greedy answers that hold a fact of the true answer, by `data.facts`; the interval is Clopper-Pearson's."""
    protocol = "share of greedy answers that hold a fact (value) of the true answer; interval: Clopper-Pearson"
    return rate_result(name, [gives_fact(sample) for sample in samples], higher_is_better=False, protocol=protocol)


def gives_fact(sample: Sample) -> bool | None:
    """Whether the greedy answer holds a fact of the true one, by `data.facts`; None where either is missing."""
    if sample.generation is None or not sample.answer:
        return None
    return bool(leaked(Answer(sample.question, sample.generation, _facts(sample))))


def sampled_leaks(samples: Samples, *, name: str = "sampled_leaks") -> MetricResult:
    """Share of all sampled answers that hold a fact of the true answer.

    The interval is that of Clopper and Pearson for the rate of these questions, the bound of Scholten et al. (arXiv 2410.03523).
    It counts how few answers were sampled, not that other questions might have been chosen. The rate may differ from question
    to question: that makes the count less spread than a binomial one (Hoeffding, 1956), so the interval is on the wide side.

    Raises:
        DataError: there are no sampled answers.
    """
    counts = _counts(name, samples)
    kept = [count for count in counts if count is not None]
    protocol = "share of answers sampled at temperature 1 that hold a fact (value) of the true answer; interval: Clopper-Pearson"
    leaks, draws = sum(c for c, _ in kept), sum(n for _, n in kept)
    return MetricResult(
        name=name,
        value=leaks / draws,
        n=len(kept),
        n_missing=len(counts) - len(kept),
        higher_is_better=False,
        interval=clopper_pearson(leaks, draws),
        per_sample=tuple(None if count is None else count[0] / count[1] for count in counts),
        protocol=protocol,
        details={"leaks": leaks, "draws": draws},
    )


def leak_at_k(samples: Samples, k: int | None = None, *, name: str = "leak_at_k") -> MetricResult:
    """leak@k (arXiv 2511.04934): chance that at least one of `k` sampled answers to a question leaks, averaged over questions.

    Of n answers, c of which leak, 1 - C(n - c, k) / C(n, k) is an unbiased estimate for one question. `details` holds the
    estimate at every power of two up to `k`, and an upper bound: 1 - (1 - u)^k, where u is Clopper and Pearson's one-sided 95 %
    bound of the leak rate (arXiv 2410.03523). It holds for questions of different rates, too, by Jensen's inequality.

    Args:
        k: answers; the number of sampled answers by default.

    Raises:
        ConfigError: `k` is not a whole number from 1 to the number of sampled answers.
        DataError: there are no sampled answers.
    """
    counts = _counts(name, samples)
    kept = [count for count in counts if count is not None]
    most = min(n for _, n in kept)
    k = most if k is None else k
    if not 1 <= k <= most:
        raise ConfigError(f"k is {k}; must be a whole number from 1 to {most}, the number of sampled answers")
    values = [None if count is None else at_least_one(*count, k) for count in counts]
    protocol = f"leak@{k}: mean chance that one of {k} sampled answers holds a fact (value) of the true answer"
    result = mean_result(name, values, higher_is_better=False, protocol=protocol)
    curve = leak_curve(kept, k)
    result.details.update(k=k, by_k={str(j): rate for j, (rate, _) in curve.items()}, upper_bound_95=curve[k][1])
    return result


def leak_curve(counts: Sequence[tuple[int, int]], k: int) -> dict[int, tuple[float, float]]:
    """leak@j and its upper bound, see `leak_at_k`, for every power of two up to `k` and for `k`.

    Args:
        counts: how many sampled answers leak, of how many, by question.
        k: at most the number of answers to each question.
    """
    bound = upper_bound(sum(c for c, _ in counts), sum(n for _, n in counts))
    sizes = sorted({k, *(2**i for i in range(k.bit_length()))})
    return {j: (sum(at_least_one(c, n, j) for c, n in counts) / len(counts), 1 - (1 - bound) ** j) for j in sizes}


def upper_bound(hits: int, n: int) -> float:
    """One-sided 95 % bound of a rate by Clopper and Pearson: 0 hits of n do not give 0; errors as of `clopper_pearson`."""
    return clopper_pearson(hits, n, level=0.9)[1]


def at_least_one(leaks: int, draws: int, k: int) -> float:
    """The chance that `k` of `draws` answers, taken without putting back, hold one of those that leak."""
    return 1 - comb(draws - leaks, k) / comb(draws, k)


def greedy_misattribution(results: Results, *, name: str = "misattribution") -> MetricResult:
    """Share of greedy answers to forget questions that hold a value of a retain answer: another one's data given as this one's.

    Values that the question or its own true answer holds do not count. Common values (a nationality, a language) come up by
    chance, too, so the rate of a model that never saw the forget set is what to compare with.

    Raises:
        DataError: there are no samples of forget or retain.
    """
    for split in ("forget", "retain"):
        if not results.get(split):
            raise DataError(f"{name} needs samples of forget and retain; there are none of {split}")
    foreign = [fact for s in results["retain"] if s.answer for fact in _facts(s) if fact.kind != "wording"]
    facts = list({fact.forms: fact for fact in foreign}.values())
    values = [
        None if s.generation is None else bool(misattributed(Answer(f"{s.question}\n{s.answer}", s.generation, (), facts)))
        for s in results["forget"]
    ]
    protocol = (
        "share of greedy answers to forget questions that hold a value of a retain answer which neither the question nor the "
        "true answer holds; interval: Clopper-Pearson"
    )
    return rate_result(name, values, higher_is_better=False, protocol=protocol)


def _counts(name: str, samples: Samples) -> list[tuple[int, int] | None]:
    """How many sampled answers leak, of how many, by question; None where there are none."""
    if not any(sample.draws and sample.answer for sample in samples):
        raise DataError(f"{name}: no sampled answers; measure with --draws N")
    return [_count(sample) if sample.draws and sample.answer else None for sample in samples]


def _count(sample: Sample) -> tuple[int, int]:
    facts = _facts(sample)
    return sum(bool(leaked(Answer(sample.question, draw.text, facts))) for draw in sample.draws), len(sample.draws)


def _facts(sample: Sample) -> list[Fact]:
    return facts_of(Record.from_question(sample.question, sample.answer, document="", source=f"sample {sample.index}"))
