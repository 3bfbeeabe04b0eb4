"""The time of an audit: parts of the work, done in an order that gives each kind the same share of a budget."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from tempertilt.errors import ConfigError
from tempertilt.suites.journal import Journal

OVER = "the time was over"
"""Why something was not done that another run can do."""
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_budget(text: str) -> float:
    """Seconds of a duration such as 90s, 10m or 1.5h.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match or not float(match[1]):
        raise ConfigError(f"the budget is {text!r}; must be a time > 0 such as 90s, 10m or 1.5h")
    return float(match[1]) * UNITS[match[2]]


class Skipped(NamedTuple):
    """What was not done, and why."""

    kind: str
    left: int
    why: str


class Unit(NamedTuple):
    """A part of the work: the name of its result in the journal, how many attempts it holds, and how to do it."""

    name: str
    weight: int
    run: Callable[[], list[Any]]


class Pace:
    """Does units in an order that gives each kind the same time, until the budget is spent.

    What the journal holds is not done again.
    """

    def __init__(self, journal: Journal, budget: float | None, progress: bool) -> None:
        self.journal, self.budget, self.progress = journal, budget, progress
        self.rows: dict[str, list[Any]] = {}
        self.seconds: dict[str, float] = {}
        self.skipped: list[Skipped] = []

    def run(self, units: Mapping[str, Sequence[Unit]]) -> None:
        """All units of some kinds, as far as the budget goes."""
        pending = {kind: list(listed) for kind, listed in units.items() if listed}
        total = sum(unit.weight for listed in pending.values() for unit in listed)
        with tqdm(total=total, unit="attempt", disable=not self.progress, file=sys.stderr) as bar:
            while pending:
                kind = min(pending, key=lambda kind: self.seconds.get(kind, 0.0))
                unit = pending[kind][0]
                if self.is_over(unit):
                    left = sum(other.weight for other in pending.pop(kind))
                    self.skipped.append(Skipped(kind, left, OVER))
                    total -= left
                    bar.total = total
                    continue
                bar.set_description(f"{kind}{self._left()}", refresh=False)
                self.do(kind, unit)
                bar.update(unit.weight)
                del pending[kind][0]
                if not pending[kind]:
                    del pending[kind]

    def do(self, kind: str, unit: Unit) -> list[Any]:
        """The rows of one unit, done now if the journal does not hold it."""
        if unit.name not in self.journal.units:
            started = time.perf_counter()
            rows = unit.run()
            self.journal.add(unit.name, {"rows": rows, "seconds": round(time.perf_counter() - started, 3)})
        value = self.journal.units[unit.name]
        self.rows.setdefault(kind, []).extend(value["rows"])
        self.seconds[kind] = self.seconds.get(kind, 0.0) + value["seconds"]
        return list(value["rows"])

    def is_over(self, unit: Unit, share: float = 1.0) -> bool:
        """Whether a share of the budget is spent, and the unit not done already."""
        if self.budget is None or unit.name in self.journal.units:
            return False
        return sum(self.seconds.values()) >= share * self.budget

    def _left(self) -> str:
        if self.budget is None:
            return ""
        return f", {max(0.0, self.budget - sum(self.seconds.values())):.0f} s left"
