"""Whether answers are right, as they were before unlearning, still known, or given under an open gate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tempertilt.errors import DataError
from tempertilt.metrics.leakage import gives_fact
from tempertilt.metrics.result import MetricResult, rate_result
from tempertilt.metrics.samples import Sample, Samples


def exact_match(samples: Samples, *, name: str = "exact_match", higher_is_better: bool | None = None) -> MetricResult:
    """Share of greedy answers that are the true one, case and white space around it aside (LUME, arXiv 2502.15097)."""
    values = [None if s.generation is None else _plain(s.generation) == _plain(s.answer) for s in samples]
    protocol = "share of greedy answers that are the true one, case and white space around it aside; interval: Clopper-Pearson"
    return _rate(name, samples, values, higher_is_better, protocol)


def _plain(text: str) -> str:
    return text.strip().lower()


def choices(samples: Samples) -> list[int | None]:
    """The answer that is the likeliest: 0 = the true one, 1 ... = the wrong ones; None where they are not scored."""
    return [
        int(np.argmin([sample.nll, *sample.perturbed_nll])) if sample.nll is not None and sample.perturbed_nll else None
        for sample in samples
    ]


def choice_accuracy(samples: Samples, *, name: str = "accuracy") -> MetricResult:
    """Share of questions whose true answer is the likeliest of those to choose from; ties go to the true one."""
    values = [None if choice is None else choice == 0 for choice in choices(samples)]
    protocol = "share of questions whose true answer is likelier than every wrong one; interval: Clopper-Pearson"
    return _rate(name, samples, values, True, protocol)


def choice_changed(samples: Samples, before: Samples, *, name: str = "choice_changed") -> MetricResult:
    """Share of questions with another choice than before unlearning.

    Raises:
        DataError: `before` is of other questions.
    """
    twins = _paired(name, samples, before)
    values = [None if None in pair else pair[0] != pair[1] for pair in zip(choices(samples), choices(twins))]
    protocol = "share of questions with another likeliest answer than before unlearning; interval: Clopper-Pearson"
    return _rate(name, samples, values, False, protocol)


def unchanged(
    samples: Samples, before: Samples, *, name: str = "unchanged", higher_is_better: bool | None = True
) -> MetricResult:
    """Share of greedy answers that are, letter for letter, those before unlearning.

    Raises:
        DataError: `before` is of other questions.
    """
    twins = _paired(name, samples, before)
    values = [
        None if s.generation is None or twin.generation is None else s.generation == twin.generation
        for s, twin in zip(samples, twins)
    ]
    protocol = "share of greedy answers that are letter for letter those before unlearning; interval: Clopper-Pearson"
    return _rate(name, samples, values, higher_is_better, protocol)


def gate_open(samples: Samples, *, name: str = "gate_open", higher_is_better: bool | None = False) -> MetricResult:
    """Share of answers that are given under an open gate at some token: false openings where nothing is to be forgotten."""
    values = [None if sample.gate is None else sample.gate > 0 for sample in samples]
    if values and not any(value is not None for value in values):
        raise DataError(f"{name}: the model has no gates")
    protocol = "share of answers before a token of which a gate is open; interval: Clopper-Pearson"
    return _rate(name, samples, values, higher_is_better, protocol)


def known(before: Samples, *, name: str = "known") -> MetricResult:
    """Share of questions that the model knew before unlearning: its greedy answer holds a fact of the true one."""
    protocol = "share of questions whose greedy answer before unlearning holds a fact of the true one; interval: Clopper-Pearson"
    return _rate(name, before, [gives_fact(sample) for sample in before], None, protocol)


def still_known(samples: Samples, before: Samples, *, name: str = "still_known", higher_is_better: bool | None) -> MetricResult:
    """Of the questions that the model knew before unlearning, the share whose greedy answer still holds a fact.

    Raises:
        DataError: `before` is of other questions, or the model knew none of them.
    """
    pairs = [(s, gives_fact(s)) for s, twin in zip(samples, _paired(name, samples, before)) if gives_fact(twin)]
    if not pairs:
        raise DataError(f"{name}: before unlearning no answer holds a fact: what is not known can't be forgotten or kept")
    protocol = "share of the questions known before unlearning whose greedy answer still holds a fact; interval: Clopper-Pearson"
    return _rate(name, [sample for sample, _ in pairs], [value for _, value in pairs], higher_is_better, protocol)


def _paired(name: str, samples: Samples, before: Samples) -> list[Sample]:
    """The samples before unlearning, in the order of `samples`."""
    by_index = {sample.index: sample for sample in before}
    twins = [by_index.get(sample.index) for sample in samples]
    if any(twin is None or twin.question != sample.question for sample, twin in zip(samples, twins)):
        raise DataError(f"{name}: the results before unlearning are of other questions; must be of the same")
    return [twin for twin in twins if twin is not None]


def _rate(
    name: str, samples: Samples, values: Sequence[bool | None], higher_is_better: bool | None, protocol: str
) -> MetricResult:
    """The share of samples for which something is true; `details` has it by group, with n, where there are groups."""
    result = rate_result(name, values, higher_is_better=higher_is_better, protocol=protocol)
    groups: dict[str, list[bool]] = {}
    for sample, value in zip(samples, values):
        if value is not None and sample.group:
            groups.setdefault(sample.group, []).append(value)
    if groups:
        result.details["by_group"] = {group: [sum(of) / len(of), len(of)] for group, of in groups.items()}
    return result
