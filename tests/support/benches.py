"""A benchmark of a tiny model on a tiny cut of TOFU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from support.tiny import make_llama
from tempertilt.bench.config import read_config
from tempertilt.bench.run import Bench, RunOptions
from tempertilt.bench.scores import Row

FAST = {"questions": {"holdout": 0}, "generate": [], "overhead_prompts": 2, "overhead_tokens": 3}


def write_cut(directory: Path, n: int = 6) -> Path:
    """Records and questions of a cut: two questions to a document, `n` of each kind."""
    directory.mkdir()
    for name in ("forget", "retain"):
        rows = [
            {"question": f"What did {name} {i} write?", "answer": f"{name} wrote {i * 7} books.", "document": f"{name}-{i // 2}"}
            for i in range(n)
        ]
        asked = [row | {"paraphrased_answer": f"Books, {i * 7}.", "perturbed_answer": wrong(i)} for i, row in enumerate(rows)]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (directory / f"{name}_perturbed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    for name in ("real_authors", "world_facts"):
        rows = [{"question": f"Who is {name} {i}?", "answer": f"{i} of them.", "perturbed_answer": wrong(i)} for i in range(n)]
        (directory / f"{name}_perturbed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def wrong(i: int) -> list[str]:
    return [f"{i + j} novels." for j in range(1, 4)]


def write_bench(tmp_path: Path, tiny_dir: Path, methods: dict[str, Any], **options: Any) -> Path:
    """The YAML of a tiny benchmark."""
    reference, data = shared(tmp_path) / "reference", shared(tmp_path) / "data"
    if not data.exists():
        data.parent.mkdir()
        shutil.copytree(tiny_dir, reference)
        make_llama(7).save_pretrained(reference)
        write_cut(data)
    content = {"model": str(tiny_dir), "reference_model": str(reference), "data_dir": str(data), "seeds": [0, 1],
               "evaluation": FAST, "device": "cpu", "threads": 1, "methods": methods} | options  # fmt: skip
    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def tiny_bench(
    tmp_path: Path, tiny_dir: Path, methods: dict[str, Any], run: RunOptions | None = None, **options: Any
) -> list[Row]:
    """Run a tiny benchmark in `shared(tmp_path)`, where the reference points of all tests are."""
    path = write_bench(tmp_path, tiny_dir, methods, **options)
    return Bench(read_config(path), path, shared(tmp_path) / "out", run or RunOptions(workers=2)).run()


def folder_of(tmp_path: Path, row: str) -> Path:
    """The folder of a row's trial."""
    specs = (shared(tmp_path) / "out").glob("trials/*/trial.json")
    return next(path.parent for path in specs if json.loads(path.read_text())["contender"] == row)


def shared(tmp_path: Path) -> Path:
    """A folder that all tests of a session share: a trial that one of them has run is finished for all."""
    return tmp_path.parent / "benches"
