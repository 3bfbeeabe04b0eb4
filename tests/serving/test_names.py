"""The names that requests call models by."""

from __future__ import annotations

from pathlib import Path

import pytest

from tempertilt.errors import ConfigError
from tempertilt.serving.names import parse_adapters


def test_names_of_adapters(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "odd=name").mkdir()
    adapters = parse_adapters([str(tmp_path / "mine"), "b=org/other", "org/third"])
    assert adapters == {"mine": str(tmp_path / "mine"), "b": "org/other", "third": "org/third"}
    for wrong in ([], ["a=x", "a=y"], ["base=x"], ["a b=x"], ["=x"], ["a="], [str(tmp_path / "odd=name")]):
        with pytest.raises(ConfigError):
            parse_adapters(wrong)
