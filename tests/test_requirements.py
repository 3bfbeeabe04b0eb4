"""The oldest versions that are tested are those that pyproject.toml allows, or newer where another requirement holds one up."""

from __future__ import annotations

import re
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
HELD_UP = {"huggingface-hub", "transformers", "scipy"}
"""Newer than allowed: transformers is what `T3ForCausalLM` needs, the others come with what needs them."""


def version(text: str) -> tuple[int, ...]:
    numbers = [int(part) for part in text.split(".")]
    return tuple(numbers + [0] * (3 - len(numbers)))


def test_the_oldest_versions_are_those_that_are_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = dict(re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", line).groups() for line in project["dependencies"])  # type: ignore[union-attr, misc]
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert set(allowed) <= set(oldest)
    for name, least in allowed.items():
        assert version(oldest[name]) >= version(least), name
        assert name in HELD_UP or version(oldest[name]) == version(least), name
