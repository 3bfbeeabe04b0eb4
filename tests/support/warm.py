"""Processes that are forked from one which has imported torch and the package already, so that each starts at once."""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tempertilt.bench import jobs

PRELOADED = [
    "tempertilt.bench.worker",
    "tempertilt.fitting.pipeline",
    "tempertilt.methods.registry",
    "datasets",
    "peft",
    "transformers.trainer",
]
WORKER = [sys.executable, "-m", "tempertilt.bench.worker"]


def warm_processes() -> Any:
    """The multiprocessing context of these processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def start_warm(
    function: Callable[..., Any], *arguments: Any, log: Path | None = None, environment: Mapping[str, str] | None = None
) -> Any:
    """Call `function` in a process of its own, and return the process.

    Args:
        function: importable by its name; what it returns is the status.
        log: file for what it prints; None leaves it to the test's own output.
        environment: of the process; None is this one's.
    """
    whole = dict(os.environ if environment is None else environment)
    process = warm_processes().Process(target=_call, args=(function, arguments, log, whole))
    process.start()
    return process


def run_warm(function: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """As `start_warm`, but wait for the process and return its exit status, negative for a signal."""
    process = start_warm(function, *arguments, **options)
    process.join()
    status: int = process.exitcode
    return status


def _call(function: Callable[..., Any], arguments: Sequence[Any], log: Path | None, environment: Mapping[str, str]) -> None:
    gc.freeze()  # a collection need not go through all that was imported
    if log is not None:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(function(*arguments))


def run_module(name: str, arguments: Sequence[str]) -> None:
    """`python -m NAME ARGUMENTS`, for `run_warm`."""
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def fork_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of a bench without a launcher and without a limit of time are such processes; the others start as always."""
    started_as_always = jobs._process

    def process(command: Sequence[str], log: Path, timeout: float | None, *rest: Callable[..., Any]) -> str:
        if list(command[:3]) != WORKER or timeout is not None:
            return started_as_always(command, log, timeout, *rest)
        status = run_warm(run_module, command[2], list(command[3:]), log=log)
        return "" if status == 0 else f"exit status {status}; see {log}"

    monkeypatch.setattr(jobs, "_process", process)
