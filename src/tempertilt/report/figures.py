"""Figures of a report as inline SVG. Colours come from the page's CSS variables, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 82, 16, 16, 52
LETTER = 6.0  # width of a letter of a point's name


class Axis(NamedTuple):
    """A linear scale: value range, ticks with their labels, and a title."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str


class Curve(NamedTuple):
    """One line of a figure; `colour` is the number of a CSS variable --c0, --c1 ..., -1 the muted one."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int


def cdf_figure(curves: Sequence[tuple[str, Sequence[float], int]], title: str, gap: tuple[int, int] | None = None) -> str:
    """Empirical distribution functions of values > 0 on a log axis.

    Args:
        curves: name, values, colour.
        title: of the x axis.
        gap: positions of two curves whose largest vertical distance is marked.
    """
    values = np.concatenate([np.asarray(of) for _, of, _ in curves])
    low, high = np.log10(np.quantile(values, 0.002)), np.log10(np.quantile(values, 0.998))
    pad = 0.06 * max(high - low, 0.2)
    x_axis = Axis(float(low - pad), float(high + pad), log_ticks(low - pad, high + pad), title)
    lines = []
    for name, of, colour in curves:
        ordered = np.sort(np.log10(np.asarray(of)))
        xs = np.repeat(np.clip(ordered, x_axis.low, x_axis.high), 2)
        ys = np.repeat(np.arange(len(ordered) + 1) / len(ordered), 2)[1:-1]
        lines.append(Curve(name, [x_axis.low, *xs, x_axis.high], [0.0, *ys, 1.0], colour))
    marks = ""
    if gap is not None:
        a, b = (np.sort(np.log10(np.asarray(curves[i][1]))) for i in gap)
        points = np.concatenate([a, b])
        shares = [np.searchsorted(of, points, side="right") / len(of) for of in (a, b)]
        at = int(np.argmax(np.abs(shares[0] - shares[1])))
        x, top, bottom = points[at], shares[0][at], shares[1][at]
        marks = gap_mark(x_axis, float(x), float(top), float(bottom), f"D = {abs(top - bottom):.3f}")
    quarters = [(q / 4, f"{q / 4:g}") for q in range(5)]
    return line_figure(lines, x_axis, Axis(0.0, 1.0, quarters, "share of questions"), marks)


def gap_mark(axis: Axis, x: float, one: float, other: float, text: str) -> str:
    """A vertical bar between two heights, with its length."""
    px, y1, y2 = _x(axis, x), _y(Axis(0, 1, (), ""), one), _y(Axis(0, 1, (), ""), other)
    anchor, dx = ("start", 8) if px < WIDTH * 0.6 else ("end", -8)
    return (
        f'<line x1="{px:.1f}" y1="{y1:.1f}" x2="{px:.1f}" y2="{y2:.1f}" class="gap"/>'
        f'<text x="{px + dx:.1f}" y="{(y1 + y2) / 2 + 4:.1f}" text-anchor="{anchor}" class="strong">{escape(text)}</text>'
    )


def line_figure(curves: Sequence[Curve], x_axis: Axis, y_axis: Axis, marks: str = "") -> str:
    """Lines with a legend."""
    body = [_frame(x_axis, y_axis)]
    for curve in curves:
        points = " ".join(f"{_x(x_axis, x):.1f},{_y(y_axis, y):.1f}" for x, y in zip(curve.xs, curve.ys))
        dash = ' stroke-dasharray="5 4"' if curve.colour < 0 else ""
        body.append(f'<polyline points="{points}" fill="none" style="stroke:{colour(curve.colour)}" stroke-width="2.2"{dash}/>')
    return _svg("".join(body) + marks) + legend([(curve.name, curve.colour) for curve in curves])


class Point(NamedTuple):
    """A run in the plane, with its intervals."""

    name: str
    x: float
    y: float
    x_interval: tuple[float, float] | None
    y_interval: tuple[float, float] | None
    colour: int


def plane_figure(points: Sequence[Point], x_axis: Axis, y_axis: Axis, lines: Sequence[tuple[float, str]] = ()) -> str:
    """Points with error bars, and named horizontal lines."""
    body = [_frame(x_axis, y_axis)]
    for y, text in lines:
        height = _y(y_axis, y)
        body.append(f'<line x1="{LEFT}" y1="{height:.1f}" x2="{WIDTH - RIGHT}" y2="{height:.1f}" class="rule"/>')
        body.append(f'<text x="{WIDTH - RIGHT - 4}" y="{height - 5:.1f}" text-anchor="end" class="note">{escape(text)}</text>')
    for point in points:
        x, y, ink = _x(x_axis, point.x), _y(y_axis, point.y), colour(point.colour)
        if point.x_interval:
            x1, x2 = (_x(x_axis, min(max(v, x_axis.low), x_axis.high)) for v in point.x_interval)
            body.append(f'<line x1="{x1:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y:.1f}" style="stroke:{ink}" class="bar"/>')
        if point.y_interval:
            y1, y2 = (_y(y_axis, min(max(v, y_axis.low), y_axis.high)) for v in point.y_interval)
            body.append(f'<line x1="{x:.1f}" y1="{y1:.1f}" x2="{x:.1f}" y2="{y2:.1f}" style="stroke:{ink}" class="bar"/>')
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" style="fill:{ink}"/>')
    return _svg("".join(body)) + legend([(point.name, point.colour) for point in points])


def pareto_figure(points: Sequence[Point], x_axis: Axis, y_axis: Axis, lines: Sequence[tuple[float, str]] = ()) -> str:
    """Named points with error bars, named horizontal lines, and a line through the points that no other one beats.

    Up is better; so is right where the x axis ascends. To have left better, give negated numbers and ticks.
    """
    body = [_frame(x_axis, y_axis)]
    for y, text in lines:
        height = _y(y_axis, y)
        body.append(f'<line x1="{LEFT}" y1="{height:.1f}" x2="{WIDTH - RIGHT}" y2="{height:.1f}" class="rule"/>')
        body.append(f'<text x="{WIDTH - RIGHT - 4}" y="{height - 5:.1f}" text-anchor="end" class="note">{escape(text)}</text>')
    front = sorted(pareto_front([(point.x, point.y) for point in points]), key=lambda i: points[i].x)
    path = " ".join(f"{_x(x_axis, points[i].x):.1f},{_y(y_axis, points[i].y):.1f}" for i in front)
    body.append(f'<polyline points="{path}" fill="none" style="stroke:var(--muted)" stroke-width="1.6" stroke-dasharray="5 4"/>')
    spots = [(_x(x_axis, point.x), _y(y_axis, point.y)) for point in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in spots]
    for (x, y), point in zip(spots, points):
        ink = colour(point.colour)
        for interval, axis, horizontal in ((point.x_interval, x_axis, True), (point.y_interval, y_axis, False)):
            if interval:
                ends = [min(max(v, axis.low), axis.high) for v in interval]
                (x1, x2), (y1, y2) = ((_x(axis, ends[0]), _x(axis, ends[1])), (y, y)) if horizontal else (
                    (x, x), (_y(axis, ends[0]), _y(axis, ends[1])))  # fmt: skip
                body.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="stroke:{ink}" class="bar"/>')
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" style="fill:{ink}"/>')
    for (x, y), point in zip(spots, points):
        left, height = _free_place(x, y, LETTER * len(point.name), taken)
        taken.append((left, height - 10, left + LETTER * len(point.name), height + 3))
        if abs(height - y) > 20:
            end = f'x2="{left + LETTER:.1f}" y2="{height + (3 if height < y else -10):.1f}"'
            body.append(f'<line x1="{x:.1f}" y1="{y:.1f}" {end} style="stroke:var(--muted)" stroke-width="0.7"/>')
        body.append(f'<text x="{left:.1f}" y="{height:.1f}" class="note">{escape(point.name)}</text>')
    return _svg("".join(body))


def _free_place(x: float, y: float, width: float, taken: Sequence[tuple[float, float, float, float]]) -> tuple[float, float]:
    """Where the name of the point at (x, y) begins and its base line: as near as no box of `taken` is in the way."""
    heights = sorted((y - 8 - 13 * i for i in range(-28, 28)), key=lambda height: abs(height + 4 - y))
    sides = (x + 3, x - width - 3)
    inside = [(left, height) for height in heights if TOP < height < HEIGHT - BOTTOM for left in sides
              if LEFT < left < WIDTH - RIGHT - width]  # fmt: skip
    free = [
        (left, height)
        for left, height in inside
        if not any(left < b and a < left + width and height - 10 < d and c < height + 3 for a, c, b, d in taken)
    ]
    return (free or inside or [(x, y - 8)])[0]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points that no other point beats: none is at least as high in both numbers and higher in one."""
    return [i for i, (x, y) in enumerate(points) if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)]


def legend(entries: Sequence[tuple[str, int]]) -> str:
    """Names with their colours, as HTML below a figure."""
    items = "".join(f'<li><i style="background:{colour(number)}"></i>{escape(name)}</li>' for name, number in entries)
    return f'<ul class="legend">{items}</ul>'


def colour(number: int) -> str:
    """The CSS value of a colour of the page."""
    return "var(--muted)" if number < 0 else f"var(--c{number % 6})"


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten between two exponents, thinned to at most seven, or round numbers where there are few."""
    whole = list(range(math.ceil(low), math.floor(high) + 1))
    step = max(1, math.ceil(len(whole) / 7))
    ticks = [(float(e), power(e)) for e in whole if e % step == 0]
    if len(ticks) < 2:
        ticks = [(math.log10(value), label) for value, label in linear_ticks(10.0**low, 10.0**high)]
    return ticks


def power(exponent: int) -> str:
    """A power of ten as a label."""
    return f"{10.0**exponent:g}" if -3 <= exponent <= 3 else f"1e{exponent}"


def linear_ticks(low: float, high: float, wanted: int = 6) -> list[tuple[float, str]]:
    """Round numbers between two values."""
    raw = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step)
    return [(i * step, f"{i * step:.6g}") for i in range(first, math.floor(high / step) + 1)]


def _x(axis: Axis, value: float) -> float:
    return LEFT + (value - axis.low) / (axis.high - axis.low) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - (value - axis.low) / (axis.high - axis.low) * (HEIGHT - TOP - BOTTOM)


def _frame(x_axis: Axis, y_axis: Axis) -> str:
    parts = []
    for value, label in x_axis.ticks:
        x = _x(x_axis, value)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" class="grid"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(label)}</text>')
    for value, label in y_axis.ticks:
        y = _y(y_axis, value)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_axis.title)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">{escape(y_axis.title)}</text>'
    )
    return "".join(parts)


def _svg(body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">{body}</svg>'
