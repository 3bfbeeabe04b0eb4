"""Figures against the numbers that they are drawn from: places, gaps, names, ticks."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import ks_2samp

from tempertilt.report.figures import (
    MUTED,
    Axis,
    Curve,
    Element,
    Figure,
    Point,
    cdf_figure,
    css_colour,
    line_figure,
    linear_ticks,
    log_ticks,
    pareto_figure,
    pareto_front,
    plane_figure,
    quality_axis,
    utility_axis,
)

UNIT = Axis(0.0, 1.0, [(0.0, "0"), (1.0, "1")], "")
"""From pixel 82 to 624 as an x axis, from 288 up to 16 as a y axis."""


def of_class(figure: Figure, name: str) -> list[Element]:
    return [element for element in figure.elements if element.attributes.get("class") == name]


def of_tag(figure: Figure, tag: str) -> list[Element]:
    return [element for element in figure.elements if element.tag == tag]


def test_the_gap_of_two_distributions_is_the_ks_statistic() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.lognormal(0, 1, 40).tolist(), rng.lognormal(0.7, 1, 55).tolist()
    figure = cdf_figure([("one", one, 0), ("other", other, MUTED)], "R", gap=(0, 1))
    statistic = ks_2samp(one, other).statistic
    (bar,), (label,) = of_class(figure, "gap"), of_class(figure, "strong")
    assert label.text == f"D = {statistic:.3f}"
    assert abs(float(bar.attributes["y1"]) - float(bar.attributes["y2"])) == pytest.approx(statistic * 272, abs=0.11)
    assert figure.legend == [("one", "var(--c0)"), ("other", "var(--muted)")]
    assert not of_class(cdf_figure([("one", one, 0)], "R"), "gap")


def test_a_distribution_function_climbs_by_one_value_at_a_time() -> None:
    (line,) = of_tag(cdf_figure([("one", [1.0, 10.0, 100.0], 0)], "R"), "polyline")
    heights = [float(place.split(",")[1]) for place in str(line.attributes["points"]).split()]
    assert sorted(set(heights), reverse=True) == pytest.approx([288, 288 - 272 / 3, 288 - 272 * 2 / 3, 16], abs=0.06)


def test_places_are_linear_in_the_values() -> None:
    (line,) = of_tag(line_figure([Curve("a", [0.0, 0.5, 1.0], [0.0, 0.25, 1.0], 0)], UNIT, UNIT), "polyline")
    assert line.attributes["points"] == "82.0,288.0 353.0,220.0 624.0,16.0"
    assert "stroke-dasharray" not in line.attributes


def test_a_point_has_its_intervals_cut_at_the_edge() -> None:
    figure = plane_figure([Point("a", 0.5, 0.5, (0.25, 2.0), (-1.0, 0.75), 1)], UNIT, UNIT, [(0.05, "0.05")])
    (spot,), (across, up), (rule,) = of_tag(figure, "circle"), of_class(figure, "bar"), of_class(figure, "rule")
    assert (spot.attributes["cx"], spot.attributes["cy"]) == ("353.0", "152.0")
    assert (across.attributes["x1"], across.attributes["x2"]) == ("217.5", "624.0")
    assert (up.attributes["y1"], up.attributes["y2"]) == ("288.0", "84.0")
    assert rule.attributes["y1"] == rule.attributes["y2"] == "274.4"
    assert figure.legend == [("a", css_colour(1))]


def test_the_front_is_what_no_other_point_beats() -> None:
    assert pareto_front([(1, 1), (2, 2), (3, 1), (2, 0), (2, 2)]) == [1, 2, 4]
    points = [Point(name, x, y, None, None, 0) for name, x, y in (("a", 0.2, 0.8), ("b", 0.6, 0.4), ("c", 0.1, 0.1))]
    (path,) = of_tag(pareto_figure(points, UNIT, UNIT), "polyline")
    assert path.attributes["points"] == "190.4,70.4 407.2,179.2"


def test_names_in_a_plot_stand_apart_and_inside() -> None:
    points = [Point(f"method{i}", 0.5, 0.5 + i / 1000, None, None, 0) for i in range(12)]
    names = of_class(pareto_figure(points, UNIT, UNIT), "note")
    places = [(float(name.attributes["x"]), float(name.attributes["y"])) for name in names]
    assert [name.text for name in names] == [point.name for point in points]
    for i, (x, y) in enumerate(places):
        assert 0 < x < 560 and 0 < y < 330
        assert all(abs(y - b) >= 13 or abs(x - a) >= 6 * len("method0") for a, b in places[:i])


def test_ticks() -> None:
    assert [label for _, label in log_ticks(-2.2, 1.1)] == ["0.01", "0.1", "1", "10"]
    assert [label for _, label in log_ticks(-9.0, -4.0)] == ["1e-9", "1e-8", "1e-7", "1e-6", "1e-5", "1e-4"]
    many = log_ticks(-300.0, 0.0)
    assert 2 <= len(many) <= 8 and all(re.fullmatch(r"1e-\d+|1", label) for _, label in many)
    few = log_ticks(0.05, 0.4)
    assert len(few) >= 2 and all(10**place == pytest.approx(float(label)) for place, label in few)
    assert [label for _, label in linear_ticks(0.0, 1.0)] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_axes_of_qualities_and_utilities() -> None:
    axis, [(place, name)] = quality_axis(-4.0)
    assert (axis.low, axis.high) == (-4.0, 0.2) and axis.ticks == [
        (-4.0, "1e-4"),
        (-3.0, "1e-3"),
        (-2.0, "1e-2"),
        (-1.0, "1e-1"),
        (0.0, "1"),
    ]
    assert 10**place == pytest.approx(0.05) and name == "0.05"
    wide = utility_axis([0.01, 0.99], "u")
    assert (wide.low, wide.high) == (0.0, 1.0)
    narrow = utility_axis([0.4, 0.5], "u")
    assert (narrow.low, narrow.high) == pytest.approx((0.37, 0.53))


def test_colours_are_those_of_the_page() -> None:
    assert [css_colour(number) for number in (0, 5, 6, MUTED)] == ["var(--c0)", "var(--c5)", "var(--c0)", "var(--muted)"]
