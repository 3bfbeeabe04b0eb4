"""The results of `make bench-small` that are in the repository: the tables follow from them, and their keys are still ours."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tempertilt.cli import main

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results" / "bench_small"


def test_the_tables_are_written_again_from_the_trials(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (shared / "models" / "tofu30-full").is_dir():
        pytest.skip("the models of the benchmark are absent")
    monkeypatch.setenv("DATA", str(shared / "tofu30"))
    monkeypatch.setenv("MODELS", str(shared / "models"))
    shutil.copytree(RESULTS / "trials", tmp_path / "trials")
    config = str(BENCHMARKS / "bench_small.yaml")
    assert main(["bench", "--config", config, "--output-dir", str(tmp_path), "--report-only", "--quiet"]) == 0
    for name in ("results.json", "table.md", "table.csv", "table.tex"):
        assert (tmp_path / name).read_bytes() == (RESULTS / name).read_bytes(), name
