"""What gives records away in a text: their names and values, in any spelling that `data.facts` takes for the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tempertilt.data.facts import Fact, facts_of, given_away, normalise
from tempertilt.data.names import names
from tempertilt.data.records import Record
from tempertilt.errors import DataError
from tempertilt.requests.state import Details

LONG_NUMBER = 7  # digits; shorter ones are years, ages, paragraphs of a law
KEPT = ("id", "requested_by", "reason", "scope", "reply", "note")


class Exposure:
    """Names and values of records."""

    def __init__(self, records: Sequence[Record]) -> None:
        found = (fact for record in records for fact in (*facts_of(record), *_names_asked(record)))
        self.facts = list({fact.forms: fact for fact in found}.values())

    def of(self, text: str) -> bool:
        """Whether a text gives one of them away."""
        return bool(given_away(self.facts, text))

    def telling(self, text: str) -> list[str]:
        """Those that a text gives away and that tell of one person by themselves: whole names, addresses, dates, long numbers."""
        return [fact.text for fact in given_away([fact for fact in self.facts if _is_telling(fact)], text)]


def check_kept_texts(details: Details, records: Sequence[Record]) -> None:
    """Raise `DataError` if something that the ledger keeps as it is holds a name or value of the records."""
    exposure = Exposure(records)
    for name in KEPT:
        if told := exposure.telling(getattr(details, name) or ""):
            flag = "--" + name.replace("_", "-")
            raise DataError(
                f"{flag} holds {told[0]!r}, which is in the records; the ledger keeps it as it is: say it in other words"
            )


def _names_asked(record: Record) -> Iterator[Fact]:
    """Names in what is asked: whom the record is about."""
    for text in (record.prompt, *(message.content for message in record.messages[:-1] if message.role != "system")):
        for start, stop in names(text):
            if form := normalise(text[start:stop]):
                yield Fact("name", text[start:stop], (form,))


def _is_telling(fact: Fact) -> bool:
    if fact.kind == "name":
        return " " in fact.forms[0]
    if fact.kind == "number":
        return len(fact.forms[0]) >= LONG_NUMBER
    return fact.kind in ("date", "address")
