"""Rows, files of rows, and what loading them says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tempertilt.data.records import Record, load_records
from tempertilt.errors import DataError

QA = {"question": "Who?", "answer": "Hina Ameen."}
CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Hina Ameen."}]


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def message_of(source: str | Path, error: type[Exception] = DataError, **options: object) -> str:
    with pytest.raises(error) as caught:
        load_records(source, **options)  # type: ignore[arg-type]
    return str(caught.value)


def record(question: str, answer: str = "a", source: str = "f:1") -> Record:
    return Record.from_question(question, answer, document=source, source=source)


def about_persons(persons: Sequence[str], source: str) -> list[Record]:
    """Three questions about each person, who is a document."""
    return [
        Record.from_question(f"{word} {person}?", f"{person} {word.lower()} {i}.", document=person, source=f"{source}:{i}")
        for i, person in enumerate(persons)
        for word in ("Where was", "What of", "Who is")
    ]
