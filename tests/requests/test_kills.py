"""Kill -9 while an event is written, and while what a killed process has left is put in order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from _ledgers import OFFICER, Place
from ledger_kills import in_child, lines_run, state_after
from tempertilt.requests import Ledger

POINTS, NEVER = 6, 10**6


def add(place: Place) -> None:
    """What adding a request ends with: its part is ready, here a copy of another, and takes the place of REQ-0."""
    payload = next(event.payload for event in place.ledger.events() if event.request == "REQ-2")
    shutil.copytree(place.ledger.part("REQ-2"), place.directory / "work" / "part")
    content = {**payload, "replaces": "REQ-0", "deletes": ["REQ-0"]}
    place.ledger.write("add", "REQ-9", lambda _: content, OFFICER, moves=place.directory / "work" / "part")


def revoke(place: Place) -> None:
    place.ledger.revoke("REQ-2", OFFICER, why="withdrawn")


@pytest.mark.integration
@pytest.mark.parametrize(("action", "name", "wanted"), [(add, "REQ-9", "active"), (revoke, "REQ-2", "revoked")])
def test_the_event_is_there_whole_or_not_at_all(
    made: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: Callable[[Place], None],
    name: str,
    wanted: str,
) -> None:
    place, before, write = replace(made, directory=tmp_path / "ledger"), len(made.ledger.events()), Ledger.write

    def stopped(line: int) -> Callable[..., Any]:
        return lambda *args, **options: counts.append(lines_run(lambda: write(*args, **options), line))

    def run(line: int) -> None:
        shutil.rmtree(place.directory, ignore_errors=True)
        shutil.copytree(made.directory, place.directory)
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "write", stopped(line))
            if line == NEVER:
                action(place)
            else:
                assert not in_child(lambda: action(place))

    counts: list[int] = []
    run(NEVER)
    outcomes = []
    for point in range(POINTS):
        run(counts[0] * point // POINTS)
        in_child(lambda: lines_run(place.ledger.recover, 12 * point))  # noqa: B023
        outcomes.append(state_after(place.directory, name, wanted, before))
        if not outcomes[-1]:
            action(place)
            assert state_after(place.directory, name, wanted, before)
    assert outcomes == sorted(outcomes) and set(outcomes) == {True, False}
