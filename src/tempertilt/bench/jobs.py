"""How trials are run: each in a process of its own, on this machine or over a Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from tempertilt.bench.trial import SPEC, Trial
from tempertilt.errors import ConfigError
from tempertilt.fitting.ray import session
from tempertilt.storage import make_dir, write_text

ENGINES = ("local", "ray")
LOG = "log.txt"


class Job(NamedTuple):
    """One trial's process: its command, where it logs, and how long it may take."""

    trial: Trial
    command: list[str]
    log: Path
    timeout: float | None


def job_of(trial: Trial, spec: dict[str, Any], config: Path, launcher: Sequence[str], timeout: float | None) -> Job:
    """Write the specification of a trial and give its process.

    Args:
        launcher: what starts the module with -m, for example accelerate launch with its options; empty is this Python.
    """
    make_dir(trial.directory)
    write_text(trial.directory / SPEC, json.dumps(spec, indent=1) + "\n")
    start = list(launcher) or [sys.executable]
    files = [str(config.resolve()), str((trial.directory / SPEC).resolve())]
    return Job(trial, [*start, "-m", "tempertilt.bench.worker", *files], trial.directory / LOG, timeout)


def run_jobs(jobs: Sequence[Job], engine: str, workers: int, done: Callable[[Trial, str], None]) -> None:
    """Run all jobs, so many at a time; `done` is told of each as it ends, with what went wrong or an empty text.

    Raises:
        ConfigError: no such engine. MissingExtraError: Ray is not installed.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r}; must be one of {', '.join(ENGINES)}")
    if jobs:
        (_run_local if engine == "local" else _run_ray)(jobs, workers, done)


def _run_local(jobs: Sequence[Job], workers: int, done: Callable[[Trial, str], None]) -> None:
    started: list[subprocess.Popen[bytes]] = []
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        waiting = {pool.submit(_process, job.command, job.log, job.timeout, started.append, stop): job for job in jobs}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    job = waiting.pop(future)
                    done(job.trial, future.result())
        except BaseException:
            stop.set()
            for process in started:
                _end(process, signal.SIGTERM)
            raise


def _process(
    command: Sequence[str],
    log: Path,
    timeout: float | None,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> str:
    """Run one process to its end; return what went wrong, or an empty text."""
    if stop is not None and stop.is_set():
        return "not started"
    with log.open("ab") as file:  # what an earlier attempt said stays
        streams: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(command, start_new_session=True, **streams)
        started(process)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            _end(process, signal.SIGKILL)
            process.wait()
            return f"it took longer than trial_seconds ({timeout:g})"
    return "" if status == 0 else f"exit status {status}; see {log}"


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a trial's process and those that it has started, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, number)


def _run_ray(jobs: Sequence[Job], workers: int, done: Callable[[Trial, str], None]) -> None:
    """Over the cluster that `RAY_ADDRESS` names, or a Ray of this machine's own; folders must be on a shared disk."""
    with session(max(1, workers)):
        import ray

        remote = ray.remote(num_cpus=1)(_process_of)
        waiting = {remote.remote(job.command, str(job.log), job.timeout, dict(os.environ)): job for job in jobs}
        while waiting:
            for reference in ray.wait(list(waiting), num_returns=1)[0]:
                job = waiting.pop(reference)
                done(job.trial, ray.get(reference))


def _process_of(command: list[str], log: str, timeout: float | None, environment: dict[str, str]) -> str:
    """A trial on a machine of the cluster, with the environment of the one that asked for it."""
    kept = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    os.environ.update(kept)
    return _process(command, Path(log), timeout)
