"""What leaks when answers are sampled as users do, at temperature 1, and how fluent the text is."""

from __future__ import annotations

import math

from tempertilt.errors import ConfigError, DataError
from tempertilt.metrics.result import MetricResult, mean_result
from tempertilt.metrics.samples import Sample, Samples


def sampled_rouge(samples: Samples, *, name: str = "sampled_rouge", higher_is_better: bool | None = None) -> MetricResult:
    """Mean over questions of the mean ROUGE-L recall of the sampled answers."""
    _check_drawn(name, samples)
    values = [sum(d.rougeL_recall for d in s.draws) / len(s.draws) if s.draws else None for s in samples]
    protocol = f"mean ROUGE-L recall of {_draws(samples)} sampled answers a question, temperature 1"
    return mean_result(name, values, higher_is_better=higher_is_better, protocol=protocol)


def best_of_n_rouge(samples: Samples, *, name: str = "best_of_n_rouge") -> MetricResult:
    """Mean over questions of the highest ROUGE-L recall among the sampled answers: what the most telling sample gives away."""
    _check_drawn(name, samples)
    values = [max((d.rougeL_recall for d in s.draws), default=None) for s in samples]
    protocol = f"mean of the highest ROUGE-L recall among {_draws(samples)} sampled answers a question, temperature 1"
    return mean_result(name, values, higher_is_better=False, protocol=protocol)


def verbatim_leak(
    samples: Samples, draws: int = 1, *, name: str = "verbatim_leak", higher_is_better: bool = False
) -> MetricResult:
    """Mean chance that at least one of `draws` answers sampled at temperature 1 is the true one word for word.

    Computed from the likelihood, 1 - (1 - p)^draws with p the probability of the whole answer: exact, nothing is sampled.
    """
    if draws < 1:
        raise ConfigError(f"draws is {draws}; must be a whole number >= 1")
    values = [_leak(sample, draws) for sample in samples]
    protocol = (
        f"mean chance that one of {draws} answers sampled at temperature 1 is the true one word for word, from its likelihood"
    )
    return mean_result(name, values, higher_is_better=higher_is_better, protocol=protocol)


def _leak(sample: Sample, draws: int) -> float | None:
    if not sample.log_probs:
        return None
    probability = math.exp(min(0.0, math.fsum(sample.log_probs)))
    return 1.0 if probability == 1.0 else -math.expm1(draws * math.log1p(-probability))


def base_perplexity(samples: Samples, *, sampled: bool = False, name: str = "base_perplexity") -> MetricResult:
    """Geometric mean of the perplexity of the answers under the base model.

    Near that of the base's own answers: fluent; far above: broken text.

    Args:
        sampled: of the sampled answers (each question's median) instead of the greedy ones.
    """
    if sampled:
        _check_drawn(name, samples)
        values = [_median([d.base_perplexity for d in s.draws if d.base_perplexity is not None]) for s in samples]
    else:
        values = [sample.base_perplexity for sample in samples]
    logs = [None if value is None else math.log(value) for value in values]
    result = mean_result(name, logs, higher_is_better=False, protocol="")
    assert result.interval is not None
    return MetricResult(
        name=name,
        value=math.exp(result.value),
        n=result.n,
        n_missing=result.n_missing,
        higher_is_better=False,
        interval=(math.exp(result.interval[0]), math.exp(result.interval[1])),
        per_sample=tuple(values),
        protocol=f"geometric mean of the perplexity of {'sampled' if sampled else 'greedy'} answers under the base model",
    )


def _check_drawn(name: str, samples: Samples) -> None:
    if not any(sample.draws for sample in samples):
        raise DataError(f"{name}: no sampled answers; measure with --draws N")


def _median(values: list[float]) -> float | None:
    ordered = sorted(values)
    return None if not ordered else (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _draws(samples: Samples) -> int:
    return max((len(sample.draws) for sample in samples), default=0)
