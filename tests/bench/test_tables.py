"""The tables of a benchmark."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from support.bench_rows import make_row
from tempertilt.bench import tables
from tempertilt.bench.scores import Row


@pytest.fixture()
def rows() -> list[Row]:
    return [
        make_row("t3", 0.6, 0.03, 5.0),
        make_row("A", 0.4, 0.04, 100.0),
        make_row("B", 0.62, 0.04, 4000.0, machines=("a machine",)),
        make_row("reference", 1.0, 0.0, 0.0, costs={}),
        make_row("C", 0.0, 0.0, 0.0, figures={}, costs={}, failures=("killed\nat once",), seeds=(), label=""),
    ]


def test_reference_points_first_then_by_score_then_those_without(rows: list[Row]) -> None:
    assert [row.name for row in tables.ranked(rows)] == ["reference", "B", "t3", "A", "C"]


def test_t3_against_the_cheapest_trained_method(rows: list[Row]) -> None:
    ratio = tables.cost_ratio(rows)
    assert ratio is not None and (ratio.cheapest, ratio.ratio) == ("A", pytest.approx(0.05))
    assert str(ratio) == "t3 unlearns in 5.0 s; the cheapest trained method, A, in 100.0 s: 1/20.0 of the time."
    slower = tables.cost_ratio([make_row("t3", 0.6, 0.03, 250.0, machines=("a machine",)), rows[1]])
    assert str(slower) == (
        "t3 unlearns in 250.0 s; the cheapest trained method, A, in 100.0 s: 2.5 times as long, on another machine."
    )
    assert tables.cost_ratio(rows[1:]) is None and tables.cost_ratio(rows[:1]) is None


def test_rivals_by_score_with_a_difference_in_each_figure(rows: list[Row]) -> None:
    table = tables.rivals(rows)
    assert table is not None and table.figures == ["score", "ks_distance", "utility"]
    assert [name for name, _ in table.rows] == ["B", "A"]
    assert [difference and round(difference.value, 9) for difference in table.rows[1][1]] == [0.2, 0.2, 0.2]
    assert tables.rivals(rows[1:]) is None and tables.rivals(rows[:1]) is None


def test_markdown(rows: list[Row]) -> None:
    text = tables.to_markdown(rows)
    lines = text.splitlines()
    assert lines[0] == "| method | setting | score ↑ | KS distance ↓ | forget quality ↑ | utility ↑ | seeds |"
    assert lines[5].startswith("| A | beta 1 | 0.4000 (0.3216 to 0.4784) | ") and lines[6] == "| C | – | – | – | – | – | 0 |"
    assert "| B | 4,000 | 1 | 1e+07 |" in lines and "| reference | – | – | – |" in lines
    assert any(line.startswith("| A | **+0.200 (+0.") and "*+0.200 (" in line for line in lines)
    assert "- C has a trial without a result: killed" in lines and lines[-1] == "- Run on: a machine."
    assert all(f"- {limit}" in lines for limit in tables.LIMITS)


def test_csv(rows: list[Row]) -> None:
    table = {row["name"]: row for row in csv.DictReader(io.StringIO(tables.to_csv(rows)))}
    assert list(table) == ["reference", "B", "t3", "A", "C"]
    assert float(table["A"]["ks_distance_mean"]) == 0.4 and table["A"]["score_seed_low"] == "" == table["C"]["score_mean"]
    assert float(table["B"]["unlearn_seconds"]) == 4000 and table["C"]["failures"] == "killed\nat once"


def test_latex(rows: list[Row]) -> None:
    lines = tables.to_latex(rows).splitlines()
    assert lines[2] == (
        r"method & score $\uparrow$ & KS distance $\downarrow$ & forget quality $\uparrow$ & utility $\uparrow$ & unlearn, s \\"
    )
    assert lines[7].startswith(r"A & $0.4000 \pm 0.078$ & ") and lines[7].endswith(r" & 100 \\")
    assert lines[8] == r"C & -- & -- & -- & -- & -- \\"


def test_json_is_json_and_leaves_draws_out(rows: list[Row]) -> None:
    text = tables.to_json(rows, {"seeds": (0, 1)})
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    figure = content["rows"][1]["figures"]["score"]
    assert figure["mean"] == 0.4 and figure["seed_low"] is None and "draws" not in figure
    assert content["config"] == {"seeds": [0, 1]} and content["machines"] == ["a machine"]
    assert {d["rival"] for d in content["t3_against_rivals"]} == {"A", "B"} and content["cost_ratio"]["cheapest"] == "A"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (12.345, "12.3"), (99.94, "99.9"), (1234.5, "1,234"), (2.5e6, "2.5e+06"), (None, "–")]
)
def test_costs(value: float | None, text: str) -> None:
    costs = {} if value is None else {"unlearn_seconds": value}
    assert tables.cost(make_row("A", 0.5, 0.1, 1.0, costs=costs), "unlearn_seconds") == text


def test_utility_without_generated_answers_is_not_called_that_of_tofu() -> None:
    row = make_row("t3", 0.5, 0.1, 2.0)
    other = make_row("NPO", 0.4, 0.1, 2.0).figures["utility"]
    same = replace(row, figures={**row.figures, "likelihood_utility": row.figures["utility"]})
    apart = replace(row, figures={**row.figures, "likelihood_utility": other})
    titles = [dict(tables.columns([one]))["utility"] for one in (row, same, apart)]
    assert titles == ["utility", "utility of likelihoods", "model utility"]
