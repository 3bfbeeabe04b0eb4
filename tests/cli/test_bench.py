"""`t3 bench` from the command line."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.benches import FAST, write_bench
from support.warm import fork_trials
from tempertilt.cli import main


@pytest.mark.integration
def test_it_runs_reports_and_plans(
    tmp_path: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fork_trials(monkeypatch)
    out = tmp_path / "out"
    path = write_bench(tmp_path, tiny_dir, {"NPO": {"options": FAST}, "OutputFilter": {}}, seeds=[0])
    command = ["bench", "--config", str(path), "--output-dir", str(out), "--workers", "2"]
    assert main([*command, "--dry-run"]) == 0
    planned = capsys.readouterr().out.splitlines()
    assert len(planned) == 4 + 2 and all(line.startswith("to do ") for line in planned)
    assert main(command) == 0
    first = capsys.readouterr().out
    assert first.endswith(f"\n{out / 'leaderboard.html'}\n") and "| NPO |" in first
    assert main([*command, "--dry-run"]) == 0
    assert all(line.startswith("finished ") for line in capsys.readouterr().out.splitlines())

    content = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["target", "reference", "NPO", "OutputFilter"]
    with (out / "table.csv").open() as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    assert float(table["NPO"]["ks_distance_mean"]) == content["rows"][2]["figures"]["ks_distance"]["mean"]
    for name in ("table.md", "table.tex", "leaderboard.html"):
        assert "OutputFilter" in (out / name).read_text()

    assert main([*command, "--report-only", "--only", "NPO"]) == 0
    partial = capsys.readouterr()
    assert "none is run" in partial.err and "| NPO |" in partial.out and "| OutputFilter |" not in partial.out


def test_bad_calls(tmp_path: Path, tiny_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {}})
    out = ["--output-dir", str(tmp_path / "out")]
    (tmp_path / "data" / "retain.jsonl").unlink()
    for arguments, message in (
        ([*out], "--config is needed"),
        (["--config", str(tmp_path / "none.yaml"), *out], "cannot be read"),
        (["--config", str(path), *out, "--only", "KL"], "--only KL is no row"),
        (["--config", str(path), *out, "--workers", "0"], "--workers is 0"),
        (["--config", str(path), *out], "retain.jsonl"),
    ):
        assert main(["bench", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error


def test_a_tracker_that_is_missing_is_named(tmp_path: Path, tiny_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {"options": FAST}}, seeds=[0])
    missing = next((name for name in ("wandb", "trackio") if find_spec(name) is None), None)
    if missing is None:
        pytest.skip("every tracker is installed")
    assert main(["bench", "--config", str(path), "--output-dir", str(tmp_path / "out"), "--report-to", missing]) == 2
    assert f"--report-to {missing} needs the package '{missing}'" in capsys.readouterr().err
