"""The figures of `t3 report`: truth ratios, forgetting against utility, and the shift of each token's likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tempertilt.metrics import truth_ratios
from tempertilt.metrics.samples import Results, Sample
from tempertilt.report.figures import (
    MUTED,
    Axis,
    Curve,
    Figure,
    Point,
    cdf_figure,
    line_figure,
    linear_ticks,
    plane_figure,
    quality_axis,
    share_axis,
    utility_axis,
)
from tempertilt.report.markup import number
from tempertilt.report.runs import Comparison, Run

Colours = Mapping[str, int]


class Chart(NamedTuple):
    """A figure and what stands above it."""

    title: str
    figure: Figure


def truth_ratio_charts(comparison: Comparison, colours: Colours) -> list[Chart]:
    """One figure for each run against the reference, the KS gap marked; without a reference one with all runs."""
    title = "truth ratio R on the forget set, log scale"
    curves = [(run.name, ratios, colours[run.name]) for run in comparison.runs if (ratios := _ratios(run.results))]
    if not curves:
        return []
    reference = _ratios(comparison.reference) if comparison.reference is not None else []
    if not reference:
        return [Chart("", cdf_figure(curves, title))]
    muted = (f"reference: {comparison.reference_name}", reference, MUTED)
    qualities = {run.name: run.metrics.get("forget_quality") for run in comparison.runs}
    charts = []
    for curve in curves:
        quality = qualities[curve[0]]
        text = f"{curve[0]}: forget quality {number(quality.value)}" if quality else curve[0]
        charts.append(Chart(text, cdf_figure([curve, muted], title, gap=(0, 1))))
    return charts


def _ratios(results: Results) -> list[float]:
    return [ratio for ratio in truth_ratios(results.get("forget", ())) if ratio is not None and ratio > 0]


def utility_chart(comparison: Comparison, colours: Colours) -> Figure | None:
    """Forget quality, on a log scale, against model utility; None where no run has both."""
    runs = [run for run in comparison.runs if {"forget_quality", "model_utility"} <= run.metrics.keys()]
    if not runs:
        return None
    points = [_point(run, colours[run.name]) for run in runs]
    floor = min(_log10(run.metrics["forget_quality"].details["floor"]) for run in runs)
    y_axis, rules = quality_axis(max(min(min(point.y for point in points) * 1.15, -3.0), floor))
    x_axis = utility_axis([end for point in points for end in (point.x, *(point.x_interval or ()))], "model utility")
    return plane_figure(points, x_axis, y_axis, rules)


def _point(run: Run, colour: int) -> Point:
    quality, utility = run.metrics["forget_quality"], run.metrics["model_utility"]
    return Point(run.name, utility.value, _log10(quality.value), utility.interval, None, colour)


def _log10(value: float) -> float:
    return float(np.log10(max(value, 1e-300)))


def shift_charts(comparison: Comparison, splits: Sequence[tuple[str, str]], colours: Colours) -> list[Chart]:
    """Distribution functions of the change of each answer token's log-probability, by split.

    Args:
        splits: name and title.
    """
    if comparison.before is None:
        return []
    charts = []
    for split, title in splits:
        before = comparison.before.results.get(split, ())
        changes = {run.name: _token_changes(before, run.results.get(split, ())) for run in comparison.after}
        changes = {name: np.sort(change) for name, change in changes.items() if len(change)}
        if changes:
            medians = ", ".join(f"{name} {np.median(change):+.2f}" for name, change in changes.items())
            charts.append(Chart(f"{title}: median change {medians}", _shift_figure(changes, colours)))
    return charts


def _shift_figure(changes: Mapping[str, NDArray[Any]], colours: Colours) -> Figure:
    ends = np.quantile(np.concatenate(list(changes.values())), [0.005, 0.995])
    low, high = float(min(ends[0], -0.5)), float(max(ends[1], 0.5))
    curves = [
        Curve(name, [low, *np.clip(change, low, high), high], [0.0, *_shares(len(change)), 1.0], colours[name])
        for name, change in changes.items()
    ]
    x_axis = Axis(low, high, linear_ticks(low, high), "change of log p of a token, nats")
    return line_figure(curves, x_axis, share_axis("share of tokens"))


def _shares(n: int) -> NDArray[np.float64]:
    return (np.arange(n) + 1) / n


def _token_changes(before: Sequence[Sample], after: Sequence[Sample]) -> NDArray[np.float64]:
    pairs = [(a.log_probs, b.log_probs) for a, b in zip(before, after) if len(a.log_probs) == len(b.log_probs)]
    return np.array([y - x for a, b in pairs for x, y in zip(a, b)])
