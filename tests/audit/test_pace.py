"""The order of the work, and its budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tempertilt.audit.pace import Pace, Unit, parse_budget
from tempertilt.errors import ConfigError
from tempertilt.suites.journal import Journal


def unit(name: str, done: list[str], weight: int = 1) -> Unit:
    return Unit(name, weight, lambda: done.append(name) or [name])  # type: ignore[func-returns-value]


def test_each_kind_gets_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = [0.0], []
    monkeypatch.setattr("tempertilt.audit.pace.time.perf_counter", lambda: clock[0])

    def slow(name: str, seconds: float) -> Unit:
        def run() -> list[Any]:
            clock[0] += seconds
            done.append(name)
            return [name]

        return Unit(name, 10, run)

    pace = Pace(Journal(tmp_path / "j", "k"), 12.0, False)
    pace.run({"slow": [slow(f"s{i}", 3) for i in range(9)], "fast": [slow(f"f{i}", 1) for i in range(9)]})
    assert done == ["s0", "f0", "f1", "f2", "s1", "f3", "f4", "f5"]
    assert [(s.kind, s.left) for s in pace.skipped] == [("slow", 70), ("fast", 30)]
    assert {s.why for s in pace.skipped} == {"the time was over"}


def test_what_the_journal_holds_is_not_done_again_and_counts_as_spent(tmp_path: Path) -> None:
    done: list[str] = []
    journal = Journal(tmp_path / "j", "k")
    journal.add("a", {"rows": ["old"], "seconds": 100.0})
    pace = Pace(journal, 50.0, False)
    pace.run({"kind": [unit("a", done), unit("b", done)]})
    assert not done and pace.rows == {"kind": ["old"]} and pace.skipped[0].left == 1


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_budgets(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "ten", "5d", "-3m"])
def test_bad_budgets(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a time > 0 such as 90s"):
        parse_budget(text)
