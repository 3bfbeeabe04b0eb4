"""Numbers and tables as text."""

from __future__ import annotations

import pytest

from tempertilt.report.markup import (
    arrow,
    between,
    latex_number,
    latex_table,
    latex_text,
    latex_title,
    markdown_table,
    number,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"), (0.12345, "0.1235"), (-0.5, "-0.5000"), (9.99994, "9.9999"), (10.0, "10.00"), (-123.456, "-123.46"),
        (0.001, "0.0010"), (0.000999, "9.99e-04"), (12345.0, "1.23e+04"), (1e-30, "1.00e-30"),
    ],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_intervals_and_arrows() -> None:
    assert between(0.1, 1e-5) == "0.1000 to 1.00e-05"
    assert [arrow(better) for better in (True, False, None)] == ["↑", "↓", ""]


def test_a_markdown_table() -> None:
    assert markdown_table(["a", "b"], [["1", "2"], ["3", "4"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |", "| 3 | 4 |"]


def test_a_latex_table() -> None:
    lines = latex_table(["a", "b", "c"], [["1", "2", "3"]]).splitlines()
    assert lines == [
        r"\begin{tabular}{lrr}", r"\toprule", r"a & b & c \\", r"\midrule", r"1 & 2 & 3 \\", r"\bottomrule", r"\end{tabular}"
    ]  # fmt: skip


def test_latex_cells() -> None:
    assert latex_number(None) == "--"
    assert latex_number(0.25) == "$0.2500$" and latex_number(0.25, float("nan")) == "$0.2500$"
    assert latex_number(0.25, 0.0123) == r"$0.2500 \pm 0.012$"
    assert latex_number(1e-7, 0.5) == r"$1.00 \cdot 10^{-7}$"
    assert latex_text("a_b & 5 % {x} #$") == r"a\_b \& 5 \% \{x\} \#\$"
    assert latex_title("P(x)_1", False) == r"P(x)\_1 $\downarrow$" and latex_title("n", None) == "n"
