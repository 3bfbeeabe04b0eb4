"""The user's own files: prompts, translations, a letter."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from tempertilt.data.lines import read_text, split_lines
from tempertilt.data.records import load_rows
from tempertilt.errors import ConfigError, DataError

LETTER = Path(__file__).with_name("templates") / "letter.txt"
FIELDS = (
    "date", "asked_by", "asked_on", "records", "attempts", "kinds", "leaks", "rate", "upper_bound",
    "records_leaked", "records_tried", "before_leaks", "before_n",
)  # fmt: skip
"""What a letter may name, each with a $ before it."""


def read_letter(path: str | None) -> Template:
    """The letter in a file, or the English one.

    Raises:
        ConfigError: it names an unknown field.
    """
    template = Template(read_text(LETTER if path is None else Path(path)))
    known = dict.fromkeys(FIELDS, "")
    try:
        template.substitute(known)
    except (KeyError, ValueError) as error:
        fields = ", ".join(f"${name}" for name in FIELDS)
        raise ConfigError(
            f"--letter {path!r} has an unknown field ({error}); must be text with {fields}, and $$ for a dollar"
        ) from error
    return template


def read_wordings(path: str | None) -> list[str]:
    """Prompts, one a line, each with {question} or {name} in it."""
    lines = (
        [] if path is None else [(n, line) for n, line in enumerate(split_lines(read_text(Path(path))), start=1) if line.strip()]
    )
    for number, line in lines:
        if "{question}" not in line and "{name}" not in line:
            raise DataError(f"{path}:{number}: the prompt has neither {{question}} nor {{name}} in it; must have one of them")
    return [line for _, line in lines]


def read_translations(path: str | None, records: int) -> dict[int, dict[str, str]]:
    """Questions by record and language, from JSON lines of `record` (from 1), `language` and `question`."""
    found: dict[int, dict[str, str]] = {}
    for number, line in enumerate([] if path is None else split_lines(read_text(Path(path))), start=1):
        row = _json(line)
        values = [row.get(name) for name in ("record", "language", "question")] if isinstance(row, Mapping) else [None]
        if not (
            isinstance(values[0], int) and 1 <= values[0] <= records and all(isinstance(v, str) and v.strip() for v in values[1:])
        ):
            raise DataError(
                f"{path}:{number}: not a translated question; must be an object with record (1 to {records}), language, question"
            )
        questions = found.setdefault(values[0], {})
        if values[1] in questions:
            raise DataError(f"{path}:{number}: record {values[0]} has a question in {values[1]} already; must be one a language")
        questions[str(values[1])] = str(values[2])
    return found


def read_prompts(paths: Sequence[str]) -> dict[str, list[str]]:
    """Prompts by the name of their file, files of one name together: lines, or `prompt`, `question` or first turn of a row."""
    found: dict[str, list[str]] = {}
    for path in map(Path, paths):
        found.setdefault(path.stem, []).extend(_prompts(path))
    return found


def _prompts(path: Path) -> list[str]:
    if path.suffix in (".jsonl", ".json"):
        prompts = [_prompt(row) for _, row in load_rows(path)]
    elif path.suffix == ".csv":
        prompts = [_prompt(row) for row in csv.DictReader(io.StringIO(read_text(path)))]
    else:
        prompts = [line for line in split_lines(read_text(path)) if line.strip()]
    if not any(prompts):
        raise DataError(f"{path}: no prompts; must be lines of text, or rows with prompt, question or turns")
    return list(filter(None, prompts))


def _prompt(row: Mapping[str, Any]) -> str:
    """The prompt of a row, with its choices below; empty where there is none."""
    turns = row.get("turns")
    text = row.get("prompt") or row.get("question") or (turns[0] if isinstance(turns, list) and turns else None)
    if not isinstance(text, str):
        return ""
    choices = row.get("choices")
    listed = zip("ABCDEFGH", choices) if isinstance(choices, list) else ()
    return "\n".join([text, *(f"{letter}. {choice}" for letter, choice in listed)])


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
