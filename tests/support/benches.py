"""A benchmark of a tiny model on a tiny cut of TOFU, in a folder of each test's own."""

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

EVALUATION = {"questions": {"holdout": 0}, "generate": [], "overhead_prompts": 2, "overhead_tokens": 3}
FAST = {"epochs": 1, "lora_rank": 2}
"""Options of a trained method that is soon done."""


def write_cut(directory: Path, n: int = 6) -> Path:
    """Records and questions of a cut: two questions to a document, `n` of each kind."""
    directory.mkdir()
    for name in ("forget", "retain"):
        rows = [
            {"question": f"What did {name} {i} write?", "answer": f"{name} wrote {i * 7} books.", "document": f"{name}-{i // 2}"}
            for i in range(n)
        ]
        questions = [row | {"paraphrased_answer": f"Books, {i * 7}.", "perturbed_answer": wrong(i)} for i, row in enumerate(rows)]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (directory / f"{name}_perturbed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    for name in ("real_authors", "world_facts"):
        rows = [{"question": f"Who is {name} {i}?", "answer": f"{i} of them.", "perturbed_answer": wrong(i)} for i in range(n)]
        (directory / f"{name}_perturbed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def wrong(i: int) -> list[str]:
    return [f"{i + j} novels." for j in range(1, 4)]


def document_of(question: str) -> int:
    """The number of the document that a question of `write_cut` on forget or retain is of."""
    return int("".join(filter(str.isdigit, question))) // 2


def write_bench(folder: Path, tiny_dir: Path, methods: dict[str, Any], **options: Any) -> Path:
    """The YAML of a tiny benchmark in `folder`, beside its data and its reference model."""
    reference, data = folder / "reference", folder / "data"
    if not data.exists():
        shutil.copytree(tiny_dir, reference)
        make_llama(7).save_pretrained(reference)
        write_cut(data)
    content = {"model": str(tiny_dir), "reference_model": str(reference), "data_dir": str(data), "seeds": [0, 1],
               "evaluation": EVALUATION, "device": "cpu", "threads": 1, "methods": methods} | options  # fmt: skip
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def open_bench(path: Path, say: Any = None, **options: Any) -> Bench:
    """The benchmark of a YAML file, its trials in `out` beside it; `options` are those of the run."""
    lines = {} if say is None else {"say": say}
    return Bench(read_config(path), path, path.parent / "out", RunOptions(**{"workers": 2, **options}), **lines)


def run_bench(path: Path, **options: Any) -> list[Row]:
    """Run the benchmark of a YAML file."""
    return open_bench(path, **options).run()


def folder_of(path: Path, row: str) -> Path:
    """The folder of a row's trial in the benchmark of a YAML file."""
    specs = (path.parent / "out").glob("trials/*/trial.json")
    return next(spec.parent for spec in specs if json.loads(spec.read_text())["contender"] == row)
