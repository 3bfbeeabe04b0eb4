"""Figures of a report: what is drawn, as elements of SVG. Colours are the page's CSS variables, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 82, 16, 16, 52
LETTER, CAPITAL = 6.7, 8.7  # widths of a letter of a point's name
MUTED = -1
"""Number of the colour of what is there to compare with."""
FORGOTTEN = 0.05
"""The forget quality from which the TOFU authors call a set forgotten."""


class Element(NamedTuple):
    """One element of SVG: its tag, attributes, and text."""

    tag: str
    attributes: dict[str, str | float]
    text: str = ""


@dataclass(frozen=True)
class Figure:
    """Elements on a canvas of `WIDTH` x `HEIGHT`, and the names of colours below it, with their CSS values."""

    elements: Sequence[Element]
    legend: Sequence[tuple[str, str]] = ()
    width: ClassVar[int] = WIDTH
    height: ClassVar[int] = HEIGHT


class Axis(NamedTuple):
    """A linear scale: value range, ticks with their labels, and a title."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str


class Curve(NamedTuple):
    """One line of a figure; `colour` is the number of a CSS variable --c0, --c1 ..., or `MUTED`."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int


class Point(NamedTuple):
    """A run in the plane, with its intervals."""

    name: str
    x: float
    y: float
    x_interval: tuple[float, float] | None
    y_interval: tuple[float, float] | None
    colour: int


def cdf_figure(curves: Sequence[tuple[str, Sequence[float], int]], title: str, gap: tuple[int, int] | None = None) -> Figure:
    """Empirical distribution functions of values > 0 on a log axis.

    Args:
        curves: name, values, colour.
        title: of the x axis.
        gap: positions of two curves whose largest vertical distance is marked.
    """
    every = np.concatenate([np.asarray(values) for _, values, _ in curves])
    low, high = np.log10(np.quantile(every, 0.002)), np.log10(np.quantile(every, 0.998))
    pad = 0.06 * max(high - low, 0.2)
    x_axis = Axis(float(low - pad), float(high + pad), log_ticks(low - pad, high + pad), title)
    steps = [_step_curve(name, np.log10(np.asarray(values)), colour, x_axis) for name, values, colour in curves]
    marks = [] if gap is None else _largest_gap(x_axis, *(np.sort(np.log10(np.asarray(curves[i][1]))) for i in gap))
    return line_figure(steps, x_axis, share_axis("share of questions"), marks)


def _step_curve(name: str, values: NDArray[Any], colour: int, axis: Axis) -> Curve:
    xs = np.repeat(np.clip(np.sort(values), axis.low, axis.high), 2)
    ys = np.repeat(np.arange(len(values) + 1) / len(values), 2)[1:-1]
    return Curve(name, [axis.low, *xs, axis.high], [0.0, *ys, 1.0], colour)


def _largest_gap(axis: Axis, one: NDArray[Any], other: NDArray[Any]) -> list[Element]:
    """A vertical bar where two distribution functions of sorted values are farthest apart, with its length."""
    xs = np.concatenate([one, other])
    shares = [np.searchsorted(values, xs, side="right") / len(values) for values in (one, other)]
    i = int(np.argmax(np.abs(shares[0] - shares[1])))
    x, (y1, y2) = _x(axis, float(xs[i])), (_y(share_axis(""), float(share[i])) for share in shares)
    anchor, dx = ("start", 8) if x < WIDTH * 0.6 else ("end", -8)
    length = f"D = {abs(shares[0][i] - shares[1][i]):.3f}"
    return [_line(x, y1, x, y2, "gap"), _text(x + dx, (y1 + y2) / 2 + 4, length, anchor, "strong")]


def line_figure(curves: Sequence[Curve], x_axis: Axis, y_axis: Axis, marks: Sequence[Element] = ()) -> Figure:
    """Lines with a legend."""
    lines = [
        _polyline([(_x(x_axis, x), _y(y_axis, y)) for x, y in zip(curve.xs, curve.ys)], curve.colour, 2.2) for curve in curves
    ]
    return Figure([*_frame(x_axis, y_axis), *lines, *marks], [(curve.name, css_colour(curve.colour)) for curve in curves])


def plane_figure(points: Sequence[Point], x_axis: Axis, y_axis: Axis, rules: Sequence[tuple[float, str]] = ()) -> Figure:
    """Points with error bars and a legend, and named horizontal lines."""
    marks = [element for point in points for element in (*_error_bars(point, x_axis, y_axis), _spot(point, x_axis, y_axis, 6))]
    elements = [*_frame(x_axis, y_axis), *_rules(rules, y_axis), *marks]
    return Figure(elements, [(point.name, css_colour(point.colour)) for point in points])


def pareto_figure(points: Sequence[Point], x_axis: Axis, y_axis: Axis, rules: Sequence[tuple[float, str]] = ()) -> Figure:
    """Points with their names and error bars, named horizontal lines, and a line through the points that no other one beats.

    Up is better; so is right where the x axis ascends. To have left better, give negated numbers and ticks.
    """
    front = sorted(pareto_front([(point.x, point.y) for point in points]), key=lambda i: points[i].x)
    path = _polyline([(_x(x_axis, points[i].x), _y(y_axis, points[i].y)) for i in front], MUTED, 1.6)
    marks = [element for point in points for element in (*_error_bars(point, x_axis, y_axis), _spot(point, x_axis, y_axis, 5))]
    return Figure([*_frame(x_axis, y_axis), *_rules(rules, y_axis), path, *marks, *_names(points, x_axis, y_axis)])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points that no other point beats: none is at least as high in both numbers and higher in one."""
    return [i for i, (x, y) in enumerate(points) if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)]


# --- axes ------------------------------------------------------------------------------------------------------------


def share_axis(title: str) -> Axis:
    """From 0 to 1, in quarters."""
    return Axis(0.0, 1.0, [(quarter / 4, f"{quarter / 4:g}") for quarter in range(5)], title)


def quality_axis(low: float) -> tuple[Axis, list[tuple[float, str]]]:
    """The y axis of forget quality, whose values are exponents of ten, from `low` to a little above 0; and its named line."""
    ticks = [(value, f"1e{int(value)}" if value else "1") for value, _ in linear_ticks(low, 0.0) if value == int(value)]
    return Axis(low, -low * 0.05, ticks, "forget quality, log scale"), [(math.log10(FORGOTTEN), f"{FORGOTTEN}")]


def utility_axis(values: Iterable[float], title: str) -> Axis:
    """An axis around these values, within 0 and 1."""
    ends = list(values)
    low, high = max(0.0, min(ends) - 0.03), min(1.0, max(ends) + 0.03)
    return Axis(low, high, linear_ticks(low, high), title)


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten between two exponents, thinned to at most seven, or round numbers where there are few."""
    whole = list(range(math.ceil(low), math.floor(high) + 1))
    step = max(1, math.ceil(len(whole) / 7))
    ticks = [(float(e), _power(e)) for e in whole if e % step == 0]
    if len(ticks) < 2:
        ticks = [(math.log10(value), label) for value, label in linear_ticks(10.0**low, 10.0**high)]
    return ticks


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -3 <= exponent <= 3 else f"1e{exponent}"


def linear_ticks(low: float, high: float, wanted: int = 6) -> list[tuple[float, str]]:
    """Round numbers between two values."""
    raw = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step)
    return [(i * step, f"{i * step:.6g}") for i in range(first, math.floor(high / step) + 1)]


# --- elements --------------------------------------------------------------------------------------------------------


def css_colour(number: int) -> str:
    """The CSS value of a colour of the page."""
    return "var(--muted)" if number == MUTED else f"var(--c{number % 6})"


def _x(axis: Axis, value: float) -> float:
    return LEFT + (value - axis.low) / (axis.high - axis.low) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - (value - axis.low) / (axis.high - axis.low) * (HEIGHT - TOP - BOTTOM)


def _pixel(value: float) -> str:
    return f"{value:.1f}"


def _line(x1: float, y1: float, x2: float, y2: float, name: str = "", style: str = "") -> Element:
    ends = dict(zip(("x1", "y1", "x2", "y2"), map(_pixel, (x1, y1, x2, y2))))
    return Element("line", {**ends, **({"class": name} if name else {}), **({"style": style} if style else {})})


def _text(x: float, y: float, text: str, anchor: str = "start", name: str = "") -> Element:
    place = {"x": _pixel(x), "y": _pixel(y), "text-anchor": anchor}
    return Element("text", {**place, **({"class": name} if name else {})}, text)


def _polyline(points: Sequence[tuple[float, float]], colour: int, width: float) -> Element:
    path = " ".join(f"{_pixel(x)},{_pixel(y)}" for x, y in points)
    dash: dict[str, str | float] = {"stroke-dasharray": "5 4"} if colour == MUTED else {}
    return Element(
        "polyline", {"points": path, "fill": "none", "stroke-width": width, "style": f"stroke:{css_colour(colour)}", **dash}
    )


def _spot(point: Point, x_axis: Axis, y_axis: Axis, radius: float) -> Element:
    x, y = _pixel(_x(x_axis, point.x)), _pixel(_y(y_axis, point.y))
    return Element("circle", {"cx": x, "cy": y, "r": radius, "style": f"fill:{css_colour(point.colour)}"})


def _error_bars(point: Point, x_axis: Axis, y_axis: Axis) -> list[Element]:
    x, y, stroke = _x(x_axis, point.x), _y(y_axis, point.y), f"stroke:{css_colour(point.colour)}"
    bars = []
    if point.x_interval:
        x1, x2 = (_x(x_axis, min(max(end, x_axis.low), x_axis.high)) for end in point.x_interval)
        bars.append(_line(x1, y, x2, y, "bar", stroke))
    if point.y_interval:
        y1, y2 = (_y(y_axis, min(max(end, y_axis.low), y_axis.high)) for end in point.y_interval)
        bars.append(_line(x, y1, x, y2, "bar", stroke))
    return bars


def _rules(rules: Sequence[tuple[float, str]], y_axis: Axis) -> list[Element]:
    elements = []
    for value, name in rules:
        y = _y(y_axis, value)
        elements += [_line(LEFT, y, WIDTH - RIGHT, y, "rule"), _text(WIDTH - RIGHT - 4, y - 5, name, "end", "note")]
    return elements


def _frame(x_axis: Axis, y_axis: Axis) -> list[Element]:
    """Grid lines, labels of the ticks, titles of the axes."""
    elements = []
    for value, label in x_axis.ticks:
        x = _x(x_axis, value)
        elements += [_line(x, TOP, x, HEIGHT - BOTTOM, "grid"), _text(x, HEIGHT - BOTTOM + 18, label, "middle")]
    for value, label in y_axis.ticks:
        y = _y(y_axis, value)
        elements += [_line(LEFT, y, WIDTH - RIGHT, y, "grid"), _text(LEFT - 8, y + 4, label, "end")]
    elements.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_axis.title, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    title = _text(18, middle, y_axis.title, "middle")
    elements.append(title._replace(attributes={**title.attributes, "transform": f"rotate(-90 18 {middle})"}))
    return elements


# --- names of points -------------------------------------------------------------------------------------------------


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom


def _names(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> list[Element]:
    """The names of points, each beside its point where no other name or point is; a thin line to those that are far."""
    spots = [(_x(x_axis, point.x), _y(y_axis, point.y)) for point in points]
    taken = [_Box(x - 4, y - 4, x + 4, y + 4) for x, y in spots]
    elements = []
    for (x, y), point in zip(spots, points):
        box = _free_place(x, y, sum(CAPITAL if letter.isupper() else LETTER for letter in point.name), taken)
        taken.append(box)
        left, baseline = box.left, box.bottom - 3
        if abs(baseline - y) > 20:
            thin = _line(x, y, left + LETTER, baseline + (3 if baseline < y else -10), style="stroke:var(--muted)")
            elements.append(thin._replace(attributes={**thin.attributes, "stroke-width": 0.7}))
        elements.append(_text(left, baseline, point.name, name="note"))
    return elements


def _free_place(x: float, y: float, width: float, taken: Sequence[_Box]) -> _Box:
    """The box of a name of `width` for the point at (x, y): as near as no box of `taken` is in the way."""
    baselines = sorted((y - 8 - 13 * i for i in range(-28, 28)), key=lambda baseline: abs(baseline + 4 - y))
    inside = [
        _Box(left, baseline - 10, left + width, baseline + 3)
        for baseline in baselines
        if TOP < baseline < HEIGHT - BOTTOM
        for left in (x + 3, x - width - 3)
        if LEFT < left < WIDTH - RIGHT - width
    ]
    free = [box for box in inside if not any(box.meets(other) for other in taken)]
    return (free or inside or [_Box(x, y - 18, x + width, y - 5)])[0]
