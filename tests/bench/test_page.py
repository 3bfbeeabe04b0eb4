"""The leaderboard's page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from support.bench_rows import make_row
from tempertilt.bench.page import to_html
from tempertilt.bench.scores import Row


@pytest.fixture()
def rows() -> list[Row]:
    failed = make_row("C", 0.0, 0.0, 0.0, figures={}, costs={}, failures=("<b>killed</b>",))
    return [
        make_row("t3", 0.6, 0.03, 5.0),
        make_row("A", 0.4, 0.04, 100.0),
        make_row("target", 0.0, 0.01, 0.0, method="target"),
        failed,
    ]


def test_the_page_needs_nothing_from_elsewhere_and_no_text_acts(rows: list[Row]) -> None:
    text = to_html(rows, "A <title>")
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and "<script" not in text
    assert text.count("A &lt;title&gt;") == 2 and "C: &lt;b&gt;killed&lt;/b&gt;" in text and "nan" not in text.lower()


def test_both_plots_are_drawn_with_every_name(rows: list[Row]) -> None:
    charts = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", to_html(rows, "t"), re.S)]
    names = [[text.text for text in chart.iter() if text.get("class") == "note" and text.text != "0.05"] for chart in charts]
    assert names == [["target", "t3", "A"], ["t3", "A"]], "what took no time is not plotted against it"


def test_without_a_reference_forgetting_is_the_probability_of_forget_answers(rows: list[Row]) -> None:
    without = [
        make_row(row.name, 0.5, 0.1, 2.0, figures={"utility": row.figures["utility"], "forget_Q_A_Prob": row.figures["score"]})
        for row in rows[:2]
    ]
    text = to_html(without, "t")
    assert "1 - P(forget answer)" in text and "log scale" not in text.split("Forgetting against time")[0]


def test_differences_are_marked_by_who_does_better(rows: list[Row]) -> None:
    text = to_html(rows, "t")
    assert re.search(r'<th>A</th><td class="num win">\+0\.200<small>\+0\.\d+ to \+0\.\d+</small></td><td class="num lose">', text)
    assert "t3 unlearns in 5.0 s; the cheapest trained method, A, in 100.0 s" in text


def test_the_chosen_setting_is_bold(rows: list[Row]) -> None:
    assert "<li><b>beta 1</b>: 0.4000</li><li>beta 2: no result (killed)</li>" in to_html(rows, "t")
