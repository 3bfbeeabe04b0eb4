"""Days in option files are texts, as options that are days have it."""

from __future__ import annotations

from pathlib import Path

from tempertilt.config.yaml_file import read_yaml


def test_a_day_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("template_date: 2026-01-31\nlearning_rate: 1e-3\nmax_length: 64\nflag: yes\n")
    assert read_yaml(path) == {"template_date": "2026-01-31", "learning_rate": 1e-3, "max_length": 64, "flag": True}
