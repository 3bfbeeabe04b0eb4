"""What leaks when answers are sampled as users do, at temperature 1, and how fluent the text is."""

from __future__ import annotations

import math
from dataclasses import replace

from tempertilt.errors import ConfigError, DataError
from tempertilt.metrics.result import MetricResult, mean_result, rate_result
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


def ended(samples: Samples, *, name: str = "ended") -> MetricResult:
    """Share of greedy answers that ended by themselves, before the limit on their length: broken text often goes on and on.

    Raises:
        DataError: no sample tells, as in runs of older versions and foreign logs.
    """
    if all(sample.generation_ends is None for sample in samples):
        raise DataError(f"{name}: no sample tells whether its answer ended by itself; measure with t3 eval --overwrite")
    protocol = "share of greedy answers that ended before the limit on their length; interval: Clopper-Pearson"
    return rate_result(name, [sample.generation_ends for sample in samples], higher_is_better=True, protocol=protocol)


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
    protocol = f"geometric mean of the perplexity of {'sampled' if sampled else 'greedy'} answers under the base model"
    return _geometric_mean(name, values, protocol)


def reference_perplexity(samples: Samples, own: Samples = (), *, name: str = "reference_perplexity") -> MetricResult:
    """Geometric mean of the perplexity of the greedy answers under a reference, a model that never saw the forget set.

    Far above that of the reference's own answers: text that such a model would not write.

    Args:
        own: samples of the reference itself; then `details` holds the same figure of its own answers, and the ratio.

    Raises:
        DataError: no reference model was run beside the measured one.
    """
    if all(sample.reference_perplexity is None for sample in samples):
        raise DataError(f"{name}: no reference model was run beside this one; measure with --reference-model or "
                        "--reference-peft-adapter")  # fmt: skip
    protocol = "geometric mean of the perplexity of greedy answers under the reference model"
    result = _geometric_mean(name, [sample.reference_perplexity for sample in samples], protocol)
    # the reference has no adapter to switch off: its base perplexity is the one under itself
    theirs = [s.base_perplexity if s.reference_perplexity is None else s.reference_perplexity for s in own]
    if any(value is not None for value in theirs):
        reference = _geometric_mean(name, theirs, protocol).value
        result.details.update(reference_own=reference, ratio=result.value / reference)
    return result


def _geometric_mean(name: str, values: list[float | None], protocol: str) -> MetricResult:
    logs = [None if value is None else math.log(value) for value in values]
    result = mean_result(name, logs, higher_is_better=False, protocol=protocol)
    assert result.interval is not None
    low, high = result.interval
    return replace(result, value=math.exp(result.value), interval=(math.exp(low), math.exp(high)), per_sample=tuple(values))


def _check_drawn(name: str, samples: Samples) -> None:
    if not any(sample.draws for sample in samples):
        raise DataError(f"{name}: no sampled answers; measure with --draws N")


def _median(values: list[float]) -> float | None:
    ordered = sorted(values)
    return None if not ordered else (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _draws(samples: Samples) -> int:
    return max((len(sample.draws) for sample in samples), default=0)
