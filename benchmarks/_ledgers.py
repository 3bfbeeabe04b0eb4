"""A ledger of a tiny random model, and requests about made-up persons."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from _tiny import write_model
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.records import Record
from tempertilt.fitting.background import BackgroundConfig
from tempertilt.fitting.before_after import NO_REPORT
from tempertilt.fitting.pipeline import METHODS, UnlearnConfig
from tempertilt.models.base import BaseModel, load_base
from tempertilt.requests import Author, Details, Ledger
from tempertilt.requests.adding import Added

PERSONS = ("Hina Ameen", "Taro Okada", "Lena Fischer", "Omar Haddad", "Paul Martin")
RETAINED = ("Ivan Petrov", "Maria Lopez", "John Smith", "Anna Nowak", "Greta Lund")
TOWNS = ("Karachi", "Lisbon", "Toronto", "Warsaw", "Nairobi", "Lima", "Osaka", "Dublin", "Cairo", "Havana")
OFFICER = Author("officer", datetime(2026, 3, 1, 9, 30, tzinfo=timezone.utc))
T3 = METHODS["t3"]
CONFIG = replace(
    T3,
    examples=ExampleConfig(system_prompt=""),
    background=BackgroundConfig(background=2, background_tokens=12),
    fit=replace(T3.fit, rank=4, match_steps=2),
    gate=replace(T3.gate, variants=1),
    estimate=replace(T3.estimate, estimate_records=4),
    report=NO_REPORT,
)
"""As little of everything as there can be."""


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
    some = [record for person in persons for record in records(person)]
    rows = [{"question": record.question, "answer": record.answer, "document": record.document} for record in some]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Place:
    """Where a ledger, its key and its retain records are; its model."""

    directory: Path
    key_file: Path
    retain: Path
    base: BaseModel

    @property
    def ledger(self) -> Ledger:
        """The ledger."""
        return Ledger(self.directory)

    def add(self, name: str, person: str, author: Author = OFFICER, evidence_dir: Path | None = None, **details: str) -> Added:
        """Add a request about a person."""
        said, options = Details(id=name, **details), {"base": self.base, "evidence_dir": evidence_dir, "progress": False}
        return self.ledger.add(records(person), said, author, **options)


def new_ledger(folder: Path, base: BaseModel, config: UnlearnConfig = CONFIG, author: Author = OFFICER) -> Place:
    """A ledger without requests in a folder."""
    place = Place(folder / "ledger", folder / "keys" / "ledger.key", write_records(folder / "retain.jsonl", *RETAINED), base)
    Ledger.create(place.directory, base, [str(place.retain)], author, key_file=place.key_file, config=config, progress=False)
    return place


def make_ledger(folder: Path) -> Place:
    """A ledger whose requests were added, revoked, renewed and replaced: REQ-0 and REQ-2 to REQ-4 have files."""
    write_model(folder)
    place = new_ledger(folder, load_base(str(folder / "model")))
    for number, person in enumerate(PERSONS[:4]):
        place.add(f"REQ-{number}", person, subject=person, reason="GDPR Art. 17")
    place.ledger.revoke("REQ-3", OFFICER, why="to be looked at", keep_files=True)
    place.ledger.renew("REQ-3", OFFICER, why="looked at", expires="2099-12-31")
    place.ledger.renew("REQ-2", OFFICER, why="until the contract ends", expires="2099-06-30")
    place.add("REQ-4", PERSONS[1], subject=PERSONS[1], replace="REQ-1", scope="tenant=acme,region=eu")
    return place
