"""A ledger of a tiny model that is made once, and copies of it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from _ledgers import Place, make_ledger


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The ledger that `make_ledger` describes; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("made")
        patch.setenv("TEMPERTILT_CACHE", str(folder / "cache"))
        return make_ledger(folder)


@pytest.fixture()
def place(made: Place, tmp_path: Path) -> Place:
    """A copy of it."""
    shutil.copytree(made.directory, tmp_path / "ledger")
    return replace(made, directory=tmp_path / "ledger")
