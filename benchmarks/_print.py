"""How every benchmark prints: machine and versions first, then rows with n, median and spread."""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tempertilt.environment import environment


def header(title: str) -> None:
    """Print what was measured, when, on what, with which versions."""
    info = environment()
    packages = ", ".join(f"{name} {version}" for name, version in info["packages"].items() if version)
    print(f"# {title}")
    print(
        f"{datetime.date.today()}  commit {_commit()}  {info['processor']}, {info['cpus']} CPUs, "
        f"{info['threads']} threads, GPUs: {info['gpus'] or 'none'}"
    )
    print(f"{info['platform']}  python {info['python']}, {packages}")


def row(name: str, values: Sequence[float], unit: str = "", digits: int = 3) -> None:
    """Print n, median, minimum and maximum of repeated measurements."""
    print(
        f"{name:<44} n={len(values)}  median {statistics.median(values):.{digits}f}{unit}  "
        f"min {min(values):.{digits}f}  max {max(values):.{digits}f}",
        flush=True,
    )


def save(path: Path, results: dict[str, Any]) -> None:
    """Write results with the environment they were measured in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"commit": _commit(), "environment": environment(), **results}, indent=1) + "\n", encoding="utf-8")


def _commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return run.stdout.strip() or "unknown"
