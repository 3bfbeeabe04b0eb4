"""What answers give away by value, in whatever words: facts of the forgotten record, and those of other people's records."""

from __future__ import annotations

from math import comb

from tempertilt.data.facts import Fact, facts_of
from tempertilt.data.record import Record
from tempertilt.errors import ConfigError, DataError
from tempertilt.metrics.leaks import Answer, leaked, misattributed
from tempertilt.metrics.result import MetricResult, clopper_pearson, mean_result, rate_result
from tempertilt.metrics.samples import Results, Sample, Samples


def greedy_leaks(samples: Samples, *, name: str = "greedy_leaks") -> MetricResult:
    """Share of greedy answers that hold a fact of the true answer, by `data.facts`; the interval is Clopper-Pearson's."""
    values = [None if s.generation is None or not s.answer else _leaks(s, s.generation) for s in samples]
    protocol = "share of greedy answers that hold a fact (value) of the true answer; interval: Clopper-Pearson"
    return rate_result(name, values, higher_is_better=False, protocol=protocol)


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
    powers = sorted({k, *(2**i for i in range(k.bit_length()))})
    bound = clopper_pearson(sum(c for c, _ in kept), sum(n for _, n in kept), level=0.9)[1]
    result.details.update(
        k=k,
        by_k={str(j): sum(at_least_one(c, n, j) for c, n in kept) / len(kept) for j in powers},
        upper_bound_95=1 - (1 - bound) ** k,
    )
    return result


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
    return [(sum(_leaks(s, draw.text) for draw in s.draws), len(s.draws)) if s.draws and s.answer else None for s in samples]


def _leaks(sample: Sample, text: str) -> bool:
    return bool(leaked(Answer(sample.question, text, _facts(sample))))


def _facts(sample: Sample) -> list[Fact]:
    return facts_of(Record.from_question(sample.question, sample.answer, document="", source=f"sample {sample.index}"))
