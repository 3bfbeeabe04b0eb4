"""Trials in warm processes, and the reference points of tiny benchmarks, measured once and copied to each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.benches import run_bench, write_bench
from support.warm import fork_trials


@pytest.fixture(autouse=True)
def forked_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_trials(monkeypatch)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path) -> Path:
    """Finished trials of the target and the reference, as every tiny benchmark has them."""
    folder = tmp_path_factory.mktemp("points")
    with pytest.MonkeyPatch.context() as patch:
        fork_trials(patch)
        run_bench(write_bench(folder, tiny_dir, {"target": {}}))
    return folder / "out" / "trials"


@pytest.fixture()
def points(measured: Path, tmp_path: Path) -> None:
    """The test's own benchmark has these trials finished already."""
    shutil.copytree(measured, tmp_path / "out" / "trials")
