"""The leaderboard: one HTML page that opens offline, with the Pareto plots. Here are the values of its template."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tempertilt
from tempertilt.bench import tables
from tempertilt.bench.scores import Difference, Row
from tempertilt.report.charts import Chart
from tempertilt.report.figures import (
    MUTED,
    Axis,
    Point,
    linear_ticks,
    log_ticks,
    pareto_figure,
    quality_axis,
    utility_axis,
)
from tempertilt.report.markup import ABSENT, number
from tempertilt.report.rendering import render

TEMPLATES = Path(__file__).parent / "templates"

Place = tuple[float, tuple[float, float] | None]
"""A value in a plot, with its interval."""


def to_html(rows: Sequence[Row], title: str) -> str:
    """The page."""
    ordered, shown, priced = tables.ranked(rows), tables.columns(rows), tables.cost_columns(rows)
    return render(
        TEMPLATES,
        "leaderboard.html",
        title=title,
        columns=[tables.title_of(*column) for column in shown],
        rows=[_row(row, [name for name, _ in shown]) for row in ordered],
        cost_columns=[title for _, title in priced],
        costs=[(row.name, [tables.cost(row, name) for name, _ in priced]) for row in ordered],
        plots=_plots(ordered),
        rivals=_rivals(rows),
        ratio=tables.cost_ratio(rows) or "",
        selections=[_selection(row) for row in ordered if row.selection],
        failures=[(row.name, failure) for row in ordered for failure in row.failures],
        limits=tables.LIMITS,
        version=tempertilt.__version__,
        date=datetime.date.today().isoformat(),
        machines=tables.machines(rows),
    )


def _row(row: Row, names: Sequence[str]) -> dict[str, Any]:
    cells = [tables.cell(row, name) for name in names]
    return {"name": row.name, "label": row.label, "cells": cells, "seeds": len(row.seeds), "point": row.name in tables.POINTS}


def _rivals(rows: Sequence[Row]) -> dict[str, Any] | None:
    table = tables.rivals(rows)
    if table is None:
        return None
    lines = [(name, [_difference(difference) for difference in differences]) for name, differences in table.rows]
    return {"columns": [tables.title_of(name) for name in table.figures], "rows": lines}


def _difference(difference: Difference | None) -> dict[str, str]:
    if difference is None:
        return {"name": "", "value": ABSENT, "interval": ""}
    value, interval = tables.signed(difference)
    return {"name": {"first": "win", "second": "lose", "open": ""}[difference.better], "value": value, "interval": interval}


def _selection(row: Row) -> dict[str, Any]:
    settings = [
        {
            "label": label,
            "chosen": label == row.label,
            "score": ("no result" if score is None else number(score)) + (f" ({why})" if why else ""),
        }
        for label, score, why in row.selection
    ]
    return {"name": row.name, "settings": settings}


def _plots(rows: Sequence[Row]) -> list[Chart]:
    """Forgetting against utility, and against time; forgetting is forget quality, or 1 - P(forget) without a reference."""
    quality = any("forget_quality" in row.figures for row in rows)
    name, height = ("forget_quality", _quality) if quality else ("forget_Q_A_Prob", _forgotten)
    rows = [row for row in rows if name in row.figures and "utility" in row.figures]
    if not rows:
        return []
    heights = {row.name: height(row) for row in rows}
    if quality:
        y_axis, rules = quality_axis(min(min(value for value, _ in heights.values()) * 1.1, -3.0))
    else:
        y_axis, rules = Axis(0.0, 1.02, linear_ticks(0.0, 1.0), "1 - P(forget answer)"), []
    charts = [("Forgetting against utility", rows, _utility, _utility_axis(rows))]
    timed = [row for row in rows if row.costs.get("unlearn_seconds", 0) > 0]
    if len(timed) > 1:
        charts.append(("Forgetting against time", timed, _speed, _time_axis(timed)))
    return [
        Chart(title, pareto_figure([_point(row, x(row), heights[row.name]) for row in some], x_axis, y_axis, rules))
        for title, some, x, x_axis in charts
    ]


def _quality(row: Row) -> Place:
    figure = row.figures["forget_quality"]
    mean, low, high = (math.log10(max(value, 1e-30)) for value in (figure.mean, figure.low, figure.high))
    return mean, (low, high)


def _forgotten(row: Row) -> Place:
    figure = row.figures["forget_Q_A_Prob"]
    return 1 - figure.mean, (1 - figure.high, 1 - figure.low)


def _utility(row: Row) -> Place:
    figure = row.figures["utility"]
    return figure.mean, (figure.low, figure.high)


def _utility_axis(rows: Sequence[Row]) -> Axis:
    ends = [end for row in rows for end in (row.figures["utility"].low, row.figures["utility"].high)]
    return utility_axis(ends, tables.utility_title(rows))


def _speed(row: Row) -> Place:
    """The time's exponent of ten, negated."""
    return -math.log10(row.costs["unlearn_seconds"]), None


def _time_axis(rows: Sequence[Row]) -> Axis:
    speeds = [_speed(row)[0] for row in rows]
    low, high = min(speeds) - 0.2, max(speeds) + 0.4
    ticks = [(-value, label) for value, label in log_ticks(-high, -low)]
    return Axis(low, high, ticks, "unlearning time, s (right is faster)")


def _point(row: Row, x: Place, y: Place) -> Point:
    colour = MUTED if row.name in tables.POINTS else 1 if row.method in ("t3", "t3-paper") else 0
    return Point(row.name, x[0], y[0], x[1], y[1], colour)
