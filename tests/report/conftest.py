"""Two runs and their comparison, read by every test here and changed by none."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.runs import write_run
from tempertilt.report.runs import Comparison, compare


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    reference = write_run(folder / "never_saw", 0.9, 50)
    return [write_run(folder / "full", 0.0, 0, reference=reference), write_run(folder / "t3", 1.0, 0, reference=reference)]


@pytest.fixture(scope="session")
def comparison(runs: list[Path]) -> Comparison:
    return compare(runs)
