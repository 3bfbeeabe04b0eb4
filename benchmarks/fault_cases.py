"""Runs a folder of small cases, each in a process of its own with an empty cache, and prints a table of what they show.

python benchmarks/fault_cases.py DIRECTORY [--only NAME ...]

Each folder `NAME` in the directory holds `case.py`, which prints what happens, and `expected.txt`, which says what is right; what
all of them share may stand in a module beside them. Old names of modules are replaced by today's. A case fails if it ends with an
error that is not of this package, or runs too long; whether its output is right is for the reader to judge.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from _print import header

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300
MOVED = {"tempertilt.generation": "tempertilt.models.generation"}


class Outcome(NamedTuple):
    """What a case did: its exit status, and the lines that it printed."""

    status: int
    lines: list[str]

    @property
    def verdict(self) -> str:
        """`ended`, `refused` by an error of this package, or why it did not end."""
        refused = self.lines[-1:] and self.lines[-1].startswith("tempertilt.errors.")
        return "ended" if self.status == 0 else "refused" if refused else f"FAILED ({self.status})"


def run_case(script: Path) -> Outcome:
    """Run a case with an empty cache and no network."""
    with tempfile.TemporaryDirectory() as work:
        environment = os.environ | {"C": str(ROOT), "TEMPERTILT_CACHE": work, "TMPDIR": work, "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(
                [sys.executable, str(script)], capture_output=True, text=True, timeout=SECONDS, env=environment, cwd=ROOT
            )
        except subprocess.TimeoutExpired:
            return Outcome(-1, [f"no end within {SECONDS} s"])
    output = done.stdout if done.returncode == 0 else done.stdout + done.stderr
    return Outcome(done.returncode, output.strip().splitlines())


def updated(directory: Path, copy: Path) -> Path:
    """A copy of the cases with the present names of modules."""
    shutil.copytree(directory, copy)
    for file in copy.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for old, new in MOVED.items():
            text = text.replace(f"from {old} import", f"from {new} import")
        file.write_text(text, encoding="utf-8")
    return copy


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", nargs="*", help="names of cases")
    args = parser.parse_args()
    header("cases of faults")
    failed = False
    with tempfile.TemporaryDirectory() as work:
        cases = updated(args.directory, Path(work) / "cases")
        for script in sorted(cases.glob("*/case.py")):
            name = script.parent.name
            if args.only and name not in args.only:
                continue
            outcome = run_case(script)
            failed |= outcome.verdict.startswith("FAILED")
            print(f"\n== {name}: {outcome.verdict}", *outcome.lines[-8:], sep="\n   ")
            print("   right:", " ".join((script.parent / "expected.txt").read_text(encoding="utf-8").split()), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
