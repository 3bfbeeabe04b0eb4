"""The scripts of examples/ run, on a tiny random model; its notebooks run as they are (`make examples`)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from support.audits import FORGET, RETAIN
from support.records import write_jsonl
from tempertilt.cli import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(script: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_ledger_of_two_requests(tiny_dir: Path, tmp_path: Path) -> None:
    lines = run("ledger.py", str(tmp_path / "work"), "--model", str(tiny_dir)).splitlines()
    heads = [line for line in lines if "parts that act" in line]
    assert [line.rpartition(": ")[2] for line in heads] == ["none", "REQ-1", "REQ-1, REQ-2", "REQ-2"]
    assert lines[-1] == "faults that verify finds: 0"


def test_an_attack_of_ones_own(tiny_dir: Path, tmp_path: Path) -> None:
    files = {}
    for name, some in (("forget", FORGET), ("retain", RETAIN)):
        rows = [{"question": record.question, "answer": record.answer, "document": record.document} for record in some]
        files[name] = str(write_jsonl(tmp_path / f"{name}.jsonl", *rows))
    common = ["--forget", files["forget"], "--retain", files["retain"]]
    small = [
        "--background",
        "2",
        "--background-tokens",
        "12",
        "--match-steps",
        "2",
        "--report-records",
        "0",
        "--answer-records",
        "0",
    ]
    assert main(["unlearn", "--model", str(tiny_dir), *common, *small, "--output-dir", str(tmp_path / "adapter"), "--quiet"]) == 0
    out = run("own_attack.py", "--adapter", str(tmp_path / "adapter"), *common)
    assert re.search(r"^crossword +[1-4] attempts", out, re.MULTILINE), out


def test_notebooks_are_committed_as_they_were_run() -> None:
    for path in EXAMPLES.glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), path.name
        assert not any(out["output_type"] == "error" for cell in cells for out in cell["outputs"]), path.name
        assert "/root/" not in path.read_text(encoding="utf-8") and "/work/" not in path.read_text(encoding="utf-8")
