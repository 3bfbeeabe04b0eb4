"""Numbers and tables as Markdown and LaTeX, for `t3 report` and `t3 bench`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ABSENT = "–"
"""The cell of a figure that a row does not have."""


def number(value: float) -> str:
    """A figure as text: four decimals below 10, two below 10,000, else, and below 0.001, three digits and a power of ten."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
    return f"{value:.2e}"


def between(low: float, high: float) -> str:
    """An interval."""
    return f"{number(low)} to {number(high)}"


def arrow(higher_is_better: bool | None) -> str:
    """Which way is better: ↑, ↓, or empty."""
    return {True: "↑", False: "↓", None: ""}[higher_is_better]


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [_markdown_row(titles), "|---" * len(titles) + "|", *(_markdown_row(row) for row in rows)]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def latex_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A booktabs table (it needs \usepackage{booktabs}). The cells are LaTeX; the first column is aligned left."""
    head = [rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", r"\toprule", _latex_row(titles), r"\midrule"]
    return "\n".join([*head, *map(_latex_row, rows), r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def latex_title(text: str, higher_is_better: bool | None) -> str:
    """A column's or row's title with its arrow."""
    return latex_text(text) + {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}[higher_is_better]


def latex_number(value: float | None, half_width: float = 0.0) -> str:
    """A figure, with half the width of its interval behind ± where that is above 0 and the figure no power of ten."""
    if value is None:
        return "--"
    mantissa, _, exponent = number(value).partition("e")
    if exponent:
        return rf"${mantissa} \cdot 10^{{{int(exponent)}}}$"
    return rf"${mantissa} \pm {half_width:.3f}$" if half_width > 0 else f"${mantissa}$"


def latex_text(text: str) -> str:
    """Text in which nothing is a command."""
    for character in "&%$#_{}":
        text = text.replace(character, "\\" + character)
    return text
