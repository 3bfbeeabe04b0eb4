"""How trials are started: in processes of their own, several at a time, over Ray, under a launcher, within a limit of time."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from support.benches import FAST, folder_of, open_bench, run_bench, write_bench
from tempertilt.bench import jobs
from tempertilt.bench.jobs import Job, run_jobs
from tempertilt.errors import ConfigError, TemperTiltError


@pytest.fixture()
def forked_trials() -> None:
    """Here processes start as they always do."""


def job(tmp_path: Path, code: str, timeout: float | None = None) -> Job:
    return Job(code, [sys.executable, "-S", "-c", code], tmp_path / "log.txt", timeout)  # type: ignore[arg-type]


def run(tmp_path: Path, *codes: str, workers: int = 2, timeout: float | None = None) -> dict[str, str]:
    """What became of each piece of code."""
    ended: dict[str, str] = {}
    run_jobs([job(tmp_path, code, timeout) for code in codes], "local", workers, lambda trial, why: ended.update({trial: why}))  # type: ignore[dict-item]
    return ended


def test_what_a_job_prints_is_added_to_its_log(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("earlier\n")
    code = "import sys; print('out'); sys.stdout.flush(); print('err', file=sys.stderr)"
    assert run(tmp_path, code) == {code: ""}
    assert (tmp_path / "log.txt").read_text() == "earlier\nout\nerr\n"


def test_a_job_that_fails_names_its_log(tmp_path: Path) -> None:
    assert run(tmp_path, "raise SystemExit(3)") == {"raise SystemExit(3)": f"exit status 3; see {tmp_path / 'log.txt'}"}


def test_as_many_jobs_run_at_a_time_as_there_are_workers(tmp_path: Path) -> None:
    """Each job waits for the other: one at a time they would never end."""
    meet = "import pathlib, time\npathlib.Path({mine!r}).touch()\nwhile not pathlib.Path({other!r}).exists(): time.sleep(0.01)"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    codes = [meet.format(mine=a, other=b), meet.format(mine=b, other=a)]
    assert set(run(tmp_path, *codes, timeout=60.0).values()) == {""}


@pytest.mark.integration
def test_a_job_that_takes_too_long_is_ended_with_what_it_has_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys, pathlib, time\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid)); time.sleep(600)"
    )
    assert run(tmp_path, code, timeout=1.5) == {code: "it took longer than trial_seconds (1.5)"}
    child = int(pid.read_text())
    deadline = time.monotonic() + 30
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_interrupt_ends_the_jobs(tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = f"import pathlib, time; pathlib.Path({str(started)!r}).write_text(str(__import__('os').getpid())); time.sleep(600)"

    def interrupt() -> None:
        while not (started.exists() and started.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, code)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not alive(int(started.read_text()))


def test_where_jobs_run_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs is 'cloud'; must be one of local, ray"):
        run_jobs([], "cloud", 1, lambda *_: None)


def test_a_trial_that_takes_too_long_is_a_failure(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {"options": FAST}}, trial_seconds=0.3)
    with pytest.raises(TemperTiltError, match="the target model could not be measured: it took longer than trial_seconds"):
        run_bench(path)


@pytest.mark.integration
@pytest.mark.usefixtures("points")
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_gives_the_same_results(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {"options": FAST}}, seeds=[0])
    local = run_bench(path)
    trial = folder_of(path, "NPO")
    (trial / "result.json").unlink()
    for sample in (trial / "eval").iterdir():
        sample.unlink()
    spread = run_bench(path, jobs="ray")
    assert [repr(row.figures) for row in spread] == [repr(row.figures) for row in local] and spread[2].figures
    assert spread[2].costs["unlearn_seconds"] != local[2].costs["unlearn_seconds"], "it was run again"


@pytest.mark.integration
@pytest.mark.usefixtures("points")
def test_trained_methods_work_under_accelerate_launch(tmp_path: Path, tiny_dir: Path) -> None:
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launcher = (sys.executable, "-m", *launch.split(), "--main_process_port", "0")
    path = write_bench(tmp_path, tiny_dir, {"pair": {"method": "NPO", "options": FAST | {"train_batch_size": 2}}}, seeds=[0])
    rows = run_bench(path, launcher=launcher)
    trial = folder_of(path, "pair")
    assert rows[2].failures == (), (trial / "log.txt").read_text()
    result: dict[str, Any] = json.loads((trial / "result.json").read_text())
    assert result["details"]["steps"] == 2, "six records, two processes of two records: two steps"


def test_a_job_is_the_command_of_its_trial(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {}})
    trial = open_bench(path).plan()[0]
    made = jobs.job_of(trial, {"key": trial.key}, path, ["accelerate", "launch"], 5.0)
    spec = trial.directory / "trial.json"
    assert made.command == ["accelerate", "launch", "-m", "tempertilt.bench.worker", str(path), str(spec)]
    assert json.loads(spec.read_text()) == {"key": trial.key} and made.timeout == 5.0
