"""Trials of a benchmark in processes that are forked where torch is imported already, instead of each importing it again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.tiny import warm_processes
from tempertilt.bench import jobs

WORKER = [sys.executable, "-m", "tempertilt.bench.worker"]


def _trial(files: list[str], log: str, environment: dict[str, str]) -> None:
    """The whole of a trial's process: its output goes into the log, its status is the worker's."""
    from tempertilt.bench.worker import main

    with Path(log).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(main(files))


@pytest.fixture(autouse=True)
def forked_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fork_trials` in every test of a module that imports this."""
    fork_trials(monkeypatch)


def fork_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials without a launcher and without a limit of time start from one warm process; the others as always."""
    context = warm_processes()
    started_as_always = jobs._process

    def process(command: Sequence[str], log: Path, timeout: float | None, *rest: Callable[..., Any]) -> str:
        if list(command[:3]) != WORKER or timeout is not None:
            return started_as_always(command, log, timeout, *rest)
        child = context.Process(target=_trial, args=(list(command[3:]), str(log), dict(os.environ)))
        child.start()
        child.join()
        return "" if child.exitcode == 0 else f"exit status {child.exitcode}; see {log}"

    monkeypatch.setattr(jobs, "_process", process)
