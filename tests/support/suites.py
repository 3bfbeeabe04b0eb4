"""Made-up data of the suites, and their runs on tiny models."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tempertilt.suites.items import MeasureConfig
from tempertilt.suites.journal import Journal
from tempertilt.suites.run import SuiteRun, run_suite
from tempertilt.suites.suite import find_suite

MEASURING = MeasureConfig(max_new_tokens=6, generation_batch=3, batch_tokens=64)


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lume_rows(n: int, tasks: Sequence[str] = ("Task1", "Task2", "Task3"), topic: str = "Ann") -> list[dict[str, str]]:
    """Completions and questions in turn, of the tasks in turn."""
    rows = []
    for i in range(n):
        task, kind = tasks[i // 2 % len(tasks)], "sc1" if i % 2 == 0 else f"qa{i % 10}"
        asked = f"{topic} {i} was born in" if kind == "sc1" else f"Where was {topic} {i} born?"
        truth = f" the town {i * 7 % 11} by the sea" if kind == "sc1" else f"town {i * 7 % 11}"
        rows.append({"id": f"{topic}-{i // 2}{kind}", "input": asked, "output": truth, "task": task})
    return rows


def write_suite(name: str, directory: Path) -> Path:
    """A directory of made-up data of a suite."""
    writers = {"lume": _lume, "people": _people, "muse": _muse, "mmlu": _mmlu, "chat": _chat}
    writers[name](directory)
    return directory


def _lume(directory: Path) -> None:
    for split, topic in (("forget", "Ann"), ("retain", "Bob"), ("holdout", "Cid")):
        write_rows(directory / f"{split}.jsonl", lume_rows(12, topic=topic))
    for split in ("member", "nonmember"):
        write_rows(directory / f"{split}.jsonl", [{"id": i, "document": f"The {split} {i} lives by the sea."} for i in range(4)])


def _people(directory: Path) -> None:
    for name, person in (("forget", "Eve Stone"), ("neighbor", "Max Reed")):
        rows = [
            {
                "name": person,
                "question": f"What did {person} write in {1900 + i}?",
                "answer": "Something long that is not used.",
                "golden_answer": f"{person} wrote The Sea {i}.",
                "paraphrased_answer": f"The Sea {i}, of course.",
                "perturbed_answer": [f"{person} wrote The Lake {j}." for j in range(3)],
            }
            for i in range(4)
        ]
        write_rows(directory / f"{name}_perturbed.jsonl", rows)


def _muse(directory: Path) -> None:
    for split in ("forget", "holdout"):
        articles = [{"text": f"The {split} paper says {i} times no."} for i in range(4)]
        write_rows(directory / "privleak" / f"{split}.jsonl", articles)
    end = "people go home by the river at night."
    rows = [{"prompt": f"The paper says {i}", "gt": f" times no, and the {i} {end}"} for i in range(4)]
    (directory / "verbmem").mkdir()
    (directory / "verbmem" / "forget.json").write_text(json.dumps(rows))
    for split in ("forget_qa", "retain_qa"):
        questions = [{"question": f"Who is {i}?", "answer": f"Man {i}"} for i in range(4)]
        write_rows(directory / "knowmem" / f"{split}.jsonl", questions)
        write_rows(directory / "knowmem" / f"{split}_icl.jsonl", [{"question": f"Is it {split}?", "answer": "Yes"}])


def _mmlu(directory: Path) -> None:
    rows = [
        {"subject": f"high_school_{i // 4}", "question": f"What is {i}?", "choices": ["a", "b", "c", str(i)], "answer": i % 4}
        for i in range(8)
    ]
    write_rows(directory / "test.jsonl", rows)


def _chat(directory: Path) -> None:
    write_rows(directory / "bench.jsonl", [{"turns": [f"Write about {i}.", "Again."]} for i in range(4)])
    labels = ("safe", "safe", "unsafe", "unsafe")
    lines = [f'{i},"How do I open, and close, door {i}?",doors,{label}' for i, label in enumerate(labels)]
    (directory / "doors.csv").write_text("\n".join(["id,prompt,type,label", *lines]) + "\n")
    (directory / "README.md").write_text("Not a table.")


def kill_in_unit(units: int) -> None:
    """Have this process killed in the middle of writing unit number `units` + 1 of a journal."""
    write, left = Journal.add, units

    def add(journal: Journal, unit: str, value: Any) -> None:
        nonlocal left
        if left == 0:
            with journal.path.open("ab") as file:  # half a line
                file.write(b'{"unit": "greedy')
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        write(journal, unit, value)

    Journal.add = add  # type: ignore[method-assign]


def run_tiny(
    name: str, model: Any, tokenizer: Any, data_dir: Path, out: Path, *, options: dict[str, Any], **others: Any
) -> SuiteRun:
    """A run of a suite with short generations; `options` are those of the suite."""
    suite = find_suite(name)
    config = suite.config(**options)
    given = {"measuring": MEASURING, "progress": False} | others
    return run_suite(suite, model, tokenizer, suite.load(data_dir, config), out, config=config, **given)
