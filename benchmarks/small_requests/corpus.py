"""The corpus: invented persons, what the records say of each, and five documents. Everything in it is made up."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempertilt.data.facts import Fact, facts_of, normalise
from tempertilt.data.records import Record, load_records

CORPUS = Path(__file__).with_name("corpus")
FORGOTTEN = ("odile_vessbrook", "casimir_tallowmere", "beatrix_quarrendon")
"""The persons that are forgotten in turn: of three families and three employers."""


@dataclass(frozen=True)
class Person:
    """An invented person, with the values that the records give and nobody else has, by attribute."""

    id: str
    name: str
    pronoun: str
    employer: str
    job: str
    values: dict[str, str]
    records: tuple[Record, ...]

    @property
    def first_name(self) -> str:
        """The name without the surname, which others share."""
        return self.name.split()[0]

    @property
    def possessive(self) -> str:
        """Her or his."""
        return "her" if self.pronoun == "she" else "his"

    @property
    def facts(self) -> dict[str, Fact]:
        """The values as facts, by attribute."""
        return {attribute: fact_of(value) for attribute, value in self.values.items()}


@dataclass(frozen=True)
class Document:
    """A document of the corpus: `values` and `quotes` stand in its text, `questions` are about it."""

    id: str
    title: str
    by: str
    forget: bool
    text: str
    questions: tuple[str, ...]
    values: tuple[str, ...]
    quotes: tuple[str, ...]

    @property
    def record(self) -> Record:
        """The document as a record of plain text."""
        return Record.from_text(self.text, document=self.id, source=f"{self.id}.txt")

    @property
    def facts(self) -> list[Fact]:
        """The values as facts."""
        return [fact_of(value) for value in self.values]


def fact_of(value: str) -> Fact:
    """A value as a fact: a date, number or e-mail address in any way of writing, everything else as these words."""
    fact = facts_of(Record.from_completion("", value, document="", source=""))[0]
    return fact if fact.kind in ("date", "number", "address") else Fact("name", value, (normalise(value),))


def load_people(directory: Path = CORPUS, *, holdout: bool = False) -> list[Person]:
    """The persons that the model is taught, or those that it never sees."""
    chosen = "holdout" if holdout else "persons"
    rows = [json.loads(line) for line in (directory / "people.jsonl").read_text(encoding="utf-8").splitlines()]
    return [_person(row, directory / chosen) for row in rows if row.pop("set") == chosen]


def _person(row: dict[str, Any], directory: Path) -> Person:
    return Person(**row, records=tuple(load_records(directory / f"{row['id']}.jsonl")))


def load_documents(directory: Path = CORPUS) -> list[Document]:
    """The documents."""
    rows = json.loads((directory / "documents.json").read_text(encoding="utf-8"))
    return [_document(row, directory / "documents") for row in rows]


def _document(row: dict[str, Any], directory: Path) -> Document:
    name = row.pop("file")
    lists = {field: tuple(row.pop(field)) for field in ("questions", "values", "quotes")}
    text = (directory / name).read_text(encoding="utf-8")
    return Document(id=Path(name).stem, text=text, **row, **lists)


def records_of(people: Iterable[Person]) -> list[Record]:
    """The records of some persons, one person after the other."""
    return [record for person in people for record in person.records]
