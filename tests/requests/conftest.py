"""Ledgers for the tests: one with two requests is made once and copied."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.ledgers import Place, make_ledger, write_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), tokenizer)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Place:
    """A ledger with requests REQ-1 and REQ-2; not to be changed."""
    place = make_ledger(tmp_path_factory.mktemp("made"), model_dir)
    place.add("REQ-1", "Hina Ameen", subject="Hina Ameen", reason="GDPR Art. 17")
    place.add("REQ-2", "Taro Okada", scope="tenant=acme,region=eu", expires="2027-01-31")
    return place


@pytest.fixture()
def place(made: Place, tmp_path: Path) -> Place:
    """A copy of it."""
    shutil.copytree(made.directory, tmp_path / "ledger")
    return replace(made, directory=tmp_path / "ledger")
