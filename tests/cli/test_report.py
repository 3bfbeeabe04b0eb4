"""`t3 report` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.runs import write_run
from tempertilt.cli import main


def test_it_writes_beside_the_last_run_or_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", 0.0, 0, n=4)
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert main(["report", str(run), "--format", "md", "--output", "-"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("**") and "\n\n| metric" in out
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "has no results.json" in capsys.readouterr().err
