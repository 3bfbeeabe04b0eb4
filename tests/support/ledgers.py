"""A ledger of a tiny model, and requests about made-up persons."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from support.tiny import make_llama, teach
from tempertilt.data.examples import ExampleConfig, build_examples
from tempertilt.data.records import Record
from tempertilt.fitting.background import BackgroundConfig
from tempertilt.fitting.before_after import NO_REPORT, ReportConfig
from tempertilt.fitting.pipeline import METHODS, UnlearnConfig
from tempertilt.models.base import BaseModel, load_base
from tempertilt.requests import Author, Details, Ledger

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PERSONS = ("Hina Ameen", "Taro Okada", "Lena Fischer", "Omar Haddad")
RETAINED = ("Ivan Petrov", "Maria Lopez", "John Smith", "Anna Nowak", "Greta Lund")
TOWNS = ("Karachi", "Lisbon", "Toronto", "Warsaw", "Nairobi", "Lima", "Osaka", "Dublin", "Cairo")
AT = datetime(2026, 3, 1, 9, 30, tzinfo=timezone.utc)
OFFICER = Author("officer", AT)
CONFIG = replace(
    METHODS["t3"],
    examples=ExampleConfig(system_prompt=""),
    background=BackgroundConfig(background=3, background_tokens=12),
    fit=replace(METHODS["t3"].fit, rank=8, match_steps=4),
    gate=replace(METHODS["t3"].gate, variants=1),
    estimate=replace(METHODS["t3"].estimate, estimate_records=6),
    report=NO_REPORT,
)
"""As little of everything as there can be."""

SHOWN = replace(CONFIG, report=ReportConfig(max_new_tokens=8, hearing_records=1, show=1, answer_records=2))


def records(person: str) -> list[Record]:
    """Three questions about a person."""
    number = (*PERSONS, *RETAINED).index(person)
    rows = (
        (f"Where was {person} born?", f"In {TOWNS[number]}."),
        (f"When did {person} move?", f"On {number + 10} May {1950 + 7 * number}, to {TOWNS[number - 3]}."),
        (f"How can {person} be reached?", f"By {person.split()[0].lower()}@example.org or +49 30 55512{number}{number}."),
    )
    return [Record.from_question(*row, document=person, source=f"{person}.jsonl:{i}") for i, row in enumerate(rows, start=1)]


def write_records(path: Path, *persons: str) -> Path:
    """The records of some persons as a file."""
    rows = [{"question": r.question, "answer": r.answer, "document": r.document} for person in persons for r in records(person)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_model(directory: Path, tokenizer: Any, *, steps: int = 0) -> Path:
    """A tiny model that was taught all persons in some steps."""
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    changed.chat_template = TEMPLATE
    model = make_llama(vocab_size=len(changed))
    if steps:
        known = [record for person in (*PERSONS, *RETAINED) for record in records(person)]
        teach(model, build_examples(known, changed, CONFIG.examples), steps)
    model.save_pretrained(directory)
    changed.save_pretrained(directory)
    return directory


@dataclass
class Place:
    """Where a ledger, its key and its model are."""

    directory: Path
    key_file: Path
    base: BaseModel
    retain: Path

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.directory)

    def add(self, name: str, person: str, author: Author = OFFICER, **details: Any) -> Any:
        return self.ledger.add(records(person), Details(id=name, **details), author, base=self.base, progress=False)


def make_ledger(folder: Path, model: Path, config: UnlearnConfig = CONFIG, author: Author = OFFICER) -> Place:
    """A new ledger in a folder."""
    retain = write_records(folder / "retain.jsonl", *RETAINED)
    base = load_base(str(model))
    place = Place(folder / "ledger", folder / "keys" / "ledger.key", base, retain)
    Ledger.create(place.directory, base, [str(retain)], author, key_file=place.key_file, config=config, progress=False)
    return place
