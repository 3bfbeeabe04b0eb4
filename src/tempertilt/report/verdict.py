"""What the figures of a run say, in a few sentences: what still comes out, whether it is told from a reference, what stayed."""

from __future__ import annotations

from collections.abc import Mapping

from tempertilt.metrics.result import MetricResult
from tempertilt.report.figures import FORGOTTEN

FEW = 100
"""Samples below which a line says that they are few."""
LEAKS = {
    "forget_leaked": "answers to the forget questions hold a fact of the true answer",
    "forget_still_known": "questions about people to forget that the model knew are still answered with a fact",
    "forget_knowledge": "questions of the forget set are answered right",
    "forget_leak_rate": "sampled answers to the forget questions hold a fact of the true answer",
}
KEPT = {
    "retain_unchanged": "retain answers are unchanged",
    "retain_still_known": "questions about neighbours that the model knew are still answered with a fact",
    "chat_unchanged": "answers to ordinary prompts are unchanged",
}
WEIGHTS = "The weights still hold the knowledge: this is what the measured model says."

Metrics = Mapping[str, MetricResult]


def verdict(metrics: Metrics, before: Metrics | None = None) -> list[str]:
    """Sentences, the most important one first; empty where no figure is known that they are made of.

    Args:
        metrics: of the run.
        before: of the model before unlearning.
    """
    before = before or {}
    lines = [_count(name, text, metrics, before) for name, text in LEAKS.items() if name in metrics][:1]
    lines += _told_apart(metrics)
    lines += [_count(name, text, metrics, before) for name, text in KEPT.items() if name in metrics]
    if "model_utility" in metrics:
        was = f", {before['model_utility'].value:.3f} before" if "model_utility" in before else ""
        lines.append(f"Model utility is {metrics['model_utility'].value:.3f}{was}.")
    return [*lines, WEIGHTS] if lines else []


def _count(name: str, text: str, metrics: Metrics, before: Metrics) -> str:
    result = metrics[name]
    count = round(result.value * result.n)
    bounds = (
        "" if result.interval is None else f" (95 %: {_percent(result.interval[0])} to {_percent(result.interval[1])} in 100)"
    )
    was = f"; {round(before[name].value * before[name].n)} of {before[name].n} before" if name in before else ""
    few = f" {result.n} are few: read the interval, not the count." if result.n < FEW else ""
    return f"{count} of {result.n} {text}{bounds}{was}.{few}"


def _told_apart(metrics: Metrics) -> list[str]:
    quality, distance = metrics.get("forget_quality"), metrics.get("ks_distance")
    if quality is None:
        return []
    told = "can be told from" if quality.value < FORGOTTEN else "can't be told from"
    away = f", D {distance.value:.3f}" if distance is not None else ""
    least = quality.details.get("floor")
    floor = f", least possible {least:.1e}" if least is not None else ""
    power = " With so few questions nearly anything passes." if quality.n < FEW and quality.value >= FORGOTTEN else ""
    shown = f"{quality.value:.1e}" if quality.value < 1e-3 else f"{quality.value:.3f}"
    return [
        f"The forget set's truth ratios {told} those of the model that never saw it (p-value {shown}{floor}{away}, "
        f"n = {quality.n}).{power}"
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".rstrip("0").rstrip(".")
