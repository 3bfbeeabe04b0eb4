"""The leaderboard: one HTML page that opens offline, with the Pareto plots."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

import tempertilt
from tempertilt.bench import tables
from tempertilt.bench.scores import Row, differences
from tempertilt.report.figures import Axis, Point, linear_ticks, log_ticks, pareto_figure
from tempertilt.report.tables import figure

NOTEWORTHY = 0.05
"""The forget quality that the TOFU authors take for forgotten."""


def to_html(rows: Sequence[Row], title: str) -> str:
    """The page."""
    folder = Path(__file__).parent
    loader = jinja2.FileSystemLoader([folder, folder.parent / "report"])
    page = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    ordered = tables.ranked(rows)
    shown = tables.columns(rows)
    priced = [(name, text) for name, text in tables.COSTS if any(name in row.costs for row in rows)]
    return page.get_template("leaderboard.html").render(
        title=title,
        columns=[(text, tables._arrow(name)) for name, text in shown],
        rows=[_cells(row, shown) for row in ordered],
        cost_columns=[text for _, text in priced],
        costs=[(row.name, [tables.cost(row.costs[n]) if n in row.costs else "–" for n, _ in priced]) for row in ordered],
        plots=_plots(ordered),
        rivals=_rivals(rows),
        ratio=tables.cost_ratio(rows),
        selections=[row for row in ordered if row.selection],
        failures=[(row.name, failure) for row in ordered for failure in row.failures],
        limits=tables.LIMITS,
        version=tempertilt.__version__,
        date=datetime.date.today().isoformat(),
        machines=tables.machines(rows),
        number=lambda value: "no result" if value is None else figure(value),
    )


def _cells(row: Row, shown: Sequence[tuple[str, str]]) -> dict[str, Any]:
    cells = [
        {"value": figure(row.figures[name].mean), "interval": tables.interval(row, name)}
        if name in row.figures
        else {"value": "–", "interval": ""}
        for name, _ in shown
    ]
    return {"name": row.name, "label": row.label, "cells": cells, "seeds": len(row.seeds), "point": row.name in tables.POINTS}


def _rivals(rows: Sequence[Row]) -> dict[str, Any]:
    ours = next((row for row in rows if row.name == tables.OURS and row.figures), None)
    if ours is None:
        return {}
    found = differences(ours, [row for row in tables.ranked(rows) if row.name not in tables.POINTS])
    names = list(dict.fromkeys(d.figure for d in found))
    lines = []
    for rival in dict.fromkeys(d.rival for d in found):
        cells = {d.figure: d for d in found if d.rival == rival}
        lines.append((rival, [cells.get(name) for name in names]))
    return {"figures": [(name, tables._arrow(name)) for name in names], "lines": lines}


def _plots(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Forgetting against utility, and against time; forgetting is forget quality, or 1 - P(forget) without a reference."""
    quality = any("forget_quality" in row.figures for row in rows)
    name = "forget_quality" if quality else "forget_Q_A_Prob"
    found = [row for row in rows if name in row.figures and "utility" in row.figures]
    if not found:
        return []
    heights = {row.name: _height(row, name) for row in found}
    low = min(value for value, _ in heights.values())
    y_axis, lines = _y_axis(low, quality)
    out = []
    utilities = [(row.figures["utility"].mean, (row.figures["utility"].low, row.figures["utility"].high)) for row in found]
    ends = [end for _, interval in utilities for end in interval]
    left, right = max(0.0, min(ends) - 0.02), min(1.0, max(ends) + 0.02)
    points = [_point(row, x, heights[row.name], interval) for row, (x, interval) in zip(found, utilities)]
    x_axis = Axis(left, right, linear_ticks(left, right), "utility")
    out.append({"title": "Forgetting against utility", "svg": pareto_figure(points, x_axis, y_axis, lines)})
    timed = [row for row in found if row.costs.get("unlearn_seconds", 0) > 0]
    if len(timed) > 1:
        logs = {row.name: -math.log10(row.costs["unlearn_seconds"]) for row in timed}
        left, right = min(logs.values()) - 0.2, max(logs.values()) + 0.4
        ticks = [(-value, label) for value, label in log_ticks(-right, -left)]
        points = [_point(row, logs[row.name], heights[row.name], None) for row in timed]
        x_axis = Axis(left, right, ticks, "unlearning time, s (right is faster)")
        out.append({"title": "Forgetting against time", "svg": pareto_figure(points, x_axis, y_axis, lines)})
    return out


def _height(row: Row, name: str) -> tuple[float, tuple[float, float] | None]:
    of = row.figures[name]
    if name == "forget_quality":
        mean, low, high = (math.log10(max(value, 1e-30)) for value in (of.mean, of.low, of.high))
        return mean, (low, high)
    return 1 - of.mean, (1 - of.high, 1 - of.low)


def _y_axis(low: float, quality: bool) -> tuple[Axis, list[tuple[float, str]]]:
    if not quality:
        return Axis(0.0, 1.02, linear_ticks(0.0, 1.0), "1 - P(forget answer)"), []
    low = min(low * 1.1, -3.0)
    ticks = [(value, f"1e{int(value)}" if value else "1") for value, _ in linear_ticks(low, 0.0) if value == int(value)]
    return Axis(low, -low * 0.05, ticks, "forget quality, log scale"), [(math.log10(NOTEWORTHY), f"{NOTEWORTHY}")]


def _point(row: Row, x: float, height: tuple[float, Any], x_interval: tuple[float, float] | None) -> Point:
    colour = -1 if row.name in tables.POINTS else 1 if row.method in ("t3", "t3-paper") else 0
    return Point(row.name, x, height[0], x_interval, height[1], colour)
