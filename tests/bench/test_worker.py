"""The process of a trial: what it writes, what it tracks, and that no two run one trial at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock

from support.benches import FAST, folder_of, run_bench, write_bench
from support.warm import run_module, warm_processes
from tempertilt.bench.worker import main, spec_of


def write_trial(tmp_path: Path, key: str, **spec: object) -> Path:
    """The folder of a trial with this specification."""
    (tmp_path / "trial").mkdir(exist_ok=True)
    (tmp_path / "trial" / "trial.json").write_text(json.dumps({"key": key, **spec}))
    return tmp_path / "trial"


@pytest.mark.integration
def test_two_benches_never_run_one_trial_at_once(tmp_path: Path, tiny_dir: Path) -> None:
    path, trial = write_bench(tmp_path, tiny_dir, {"NPO": {}}), write_trial(tmp_path, "k")
    log = tmp_path / "log.txt"
    with FileLock(trial / ".lock"):
        second = warm_processes().Process(target=_logged, args=(str(path), str(trial / "trial.json"), str(log)))
        second.start()
        while not (log.exists() and "waiting for it" in log.read_text()):
            assert second.is_alive(), "it waits until the lock is free"
            second.join(0.01)
        (trial / "result.json").write_text('{"key": "k"}')  # the first one has finished
    second.join(60)
    assert second.exitcode == 0 and (trial / "result.json").read_text() == '{"key": "k"}'


def _logged(config: str, spec: str, log: str) -> None:
    import os

    with Path(log).open("wb") as file:
        os.dup2(file.fileno(), 2)
    run_module("tempertilt.bench.worker", [config, spec])


def test_a_failure_is_written_with_its_key(tmp_path: Path, tiny_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {}}, threads=0)
    trial = write_trial(tmp_path, "k", name="n", seed=0, method="NPQ", options={}, part="report")
    assert main([str(path), str(trial / "trial.json")]) == 3
    failure = json.loads((trial / "failure.json").read_text())
    assert failure["key"] == "k" and "no method 'NPQ'" in failure["error"] and not (trial / "result.json").exists()
    assert not (trial / "work").exists() and "Traceback" in capsys.readouterr().err


def test_a_finished_trial_is_not_run_again(tmp_path: Path) -> None:
    trial = write_trial(tmp_path, "k")
    (trial / "result.json").write_text('{"key": "k"}')
    assert main(["no such file", str(trial / "trial.json")]) == 0


@pytest.mark.integration
@pytest.mark.usefixtures("points")
@pytest.mark.parametrize(
    ("tracker", "written"),
    [
        ("tensorboard", "tensorboard/**/events.out.tfevents.*"),
        ("trackio", "trackio/*.db"),
        ("wandb", "wandb/offline-run-*"),
    ],
)
def test_tracking_writes_into_the_trial(
    tmp_path: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, written: str
) -> None:
    pytest.importorskip(tracker)
    monkeypatch.setenv("WANDB_MODE", "offline")
    path = write_bench(tmp_path, tiny_dir, {"NPO": {"options": FAST}}, seeds=[0])
    rows = run_bench(path, report_to=tracker)
    trial = folder_of(path, "NPO")
    assert rows[2].failures == () and list(trial.glob(written)) and not (trial / "work").exists()


@pytest.mark.integration
@pytest.mark.usefixtures("points")
def test_a_method_in_the_prompt_is_timed_and_merged_weights_are_not(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, {"PromptGuardrail": {}, "NPO": {"options": FAST}}, seeds=[0])
    run_bench(path)
    ratios = {
        row: json.loads((folder_of(path, row) / "result.json").read_text())["overhead"] for row in ("PromptGuardrail", "NPO")
    }
    assert ratios["NPO"] == {"ratio": 1.0, "timed": False}
    timed = ratios["PromptGuardrail"]
    assert timed["timed"] and len(timed["rounds"]) == 3 and timed["ratio"] == sorted(timed["rounds"])[1] > 0


def test_a_specification_says_what_the_process_needs(tmp_path: Path, tiny_dir: Path) -> None:
    from support.benches import open_bench

    bench = open_bench(write_bench(tmp_path, tiny_dir, {"NPO": {"options": FAST}}))
    trial = next(trial for trial in bench.plan() if trial.contender == "NPO")
    spec = json.loads(json.dumps(spec_of(trial, "a label", "none")))
    assert spec == {
        "key": trial.key, "name": f"NPO report seed 0 {trial.key[:8]}", "contender": "NPO", "method": "NPO", "options": FAST,
        "label": "a label", "seed": 0, "part": "report", "report_to": "none",
    }  # fmt: skip
