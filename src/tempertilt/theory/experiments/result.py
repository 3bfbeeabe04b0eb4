"""What an experiment gives: findings in words, a short table, all its numbers, and a figure."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tempertilt.storage import make_dir, write_text, write_whole
from tempertilt.theory.experiments.style import drawing

Cell = str | float | int


class Table(NamedTuple):
    """Columns by name, and rows of texts and numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def markdown(self) -> str:
        """A Markdown table, numbers with three significant digits."""
        lines = [self.columns, ["---"] * len(self.columns), *([show(cell) for cell in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def csv(self) -> str:
        """Comma-separated values, numbers in full."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return out.getvalue()

    def records(self) -> list[dict[str, Cell]]:
        """One dictionary for each row."""
        return [dict(zip(self.columns, row)) for row in self.rows]


@dataclass(frozen=True)
class Result:
    """One run of an experiment."""

    name: str = field(metadata={"help": "of the experiment"})
    title: str = field(metadata={"help": "what it shows"})
    settings: dict[str, Any] = field(metadata={"help": "seed, parameters"})
    findings: Sequence[str] = field(metadata={"help": "sentences with measured numbers"})
    summary: Table = field(metadata={"help": "the table to read"})
    table: Table = field(metadata={"help": "every number of the figure"})
    draw: Callable[[], Any] = field(metadata={"help": "makes the matplotlib figure"})

    def markdown(self) -> str:
        """Title, findings and summary."""
        return "\n".join([f"# {self.title}", "", *(f"- {finding}" for finding in self.findings), "", self.summary.markdown(), ""])

    def report(self) -> dict[str, Any]:
        """JSON-ready."""
        head = {"experiment": self.name, "title": self.title, "settings": self.settings, "findings": list(self.findings)}
        return {**head, "summary": self.summary.records(), "table": self.table.records()}

    def write(self, directory: Path) -> list[Path]:
        """Write NAME.png, NAME.md, NAME.csv and NAME.json; return their paths.

        Raises:
            TemperTiltError: the directory cannot be written.
            MissingExtraError: matplotlib is not installed.
        """
        make_dir(directory)
        paths = {kind: directory / f"{self.name}.{kind}" for kind in ("png", "md", "csv", "json")}
        with drawing():
            figure = self.draw()
            write_whole(paths["png"], lambda path: figure.savefig(path, format="png", metadata={"Software": None}))
        write_text(paths["md"], self.markdown())
        write_text(paths["csv"], self.table.csv())
        write_text(paths["json"], json.dumps(self.report(), indent=1) + "\n")
        return list(paths.values())


def show(cell: Cell) -> str:
    """A number with three significant digits, powers of ten where it is very small or large; text as it is."""
    if isinstance(cell, (str, int)):
        return str(cell)
    if cell == 0 or not math.isfinite(cell):
        return f"{cell:g}"
    text = f"{cell:.2e}" if not 1e-3 <= abs(cell) < 1e4 else f"{cell:.3g}"
    return text if "e" not in text or not 1e-3 <= abs(cell) < 1e4 else f"{cell:.0f}"
