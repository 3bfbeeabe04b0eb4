"""Stand-ins: records about nobody, in the wording of given ones, with other names, words and digits in their values.

A model that was trained on the given records knows their wording, and nothing of these persons: so what it says of a stand-in is
what it says of somebody of the same kind whom it never saw. Names and values are put together anew: each word from those at the
same place in names of other documents, each digit from those at the same place in numbers that are written alike.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from tempertilt.data.facts import MONTHS
from tempertilt.data.names import names
from tempertilt.data.record import Record
from tempertilt.data.subjects import subject_words

LEAST_DOCUMENTS = 8  # of fewer nothing new can be put together
SUBJECT = "subject"
COMMON = 0.25  # share of the documents that hold a word: then it is of the wording
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d+(?:[./-]\d+)*")
_DIGIT = re.compile(r"\d")


def stand_ins(records: Sequence[Record], count: int, seed: int = 0) -> list[Record]:
    """At most `count` stand-ins, each of another of the records; none where those are of fewer than 8 documents.

    Records of one document stay together: a name is another one, but the same in all of them.
    """
    values = _Values(records)
    if len(values.words) < LEAST_DOCUMENTS:
        return []
    drawn = sorted(random.Random(seed).sample(range(len(records)), min(count, len(records))))
    changes = {name: values.change(name, f"{seed} {name}") for name in dict.fromkeys(records[i].document for i in drawn)}
    return [_changed(records[i], changes[records[i].document]) for i in drawn]


def _changed(record: Record, change: Callable[[str], str]) -> Record:
    messages = tuple(replace(message, content=change(message.content)) for message in record.messages)
    answer = messages[-1].content if messages else change(record.answer)
    return Record(record.kind, messages, change(record.prompt), answer, record.document, "made up")


class _Values:
    """Words of names by what kind of name they stand in and where, and numbers by the way in which they are written."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.words: dict[str, dict[str, str]] = {}  # of each document, with their kind and place
        self._numbers: dict[str, list[str]] = defaultdict(list)
        documents: dict[str, list[Record]] = defaultdict(list)
        for record in records:
            documents[record.document].append(record)
        held = Counter(word for rows in documents.values() for word in set(_WORD.findall(_text(rows).lower())))
        most = COMMON * len(documents)
        self._pools: dict[str, set[str]] = defaultdict(set)
        self._holders: dict[str, set[str]] = defaultdict(set)
        for name, rows in documents.items():
            text, subject = _text(rows), subject_words(rows)
            for number in _NUMBER.findall(text):
                self._numbers[_DIGIT.sub("0", number)].append(number)
            places: dict[str, Counter[str]] = defaultdict(Counter)
            for word, place in _named(text, subject):
                if held[word] <= most:
                    places[word][place] += 1
            self.words[name] = {word: counts.most_common(1)[0][0] for word, counts in sorted(places.items())}
            for word, place in self.words[name].items():
                self._pools[place].add(word)
                self._holders[word].add(name)

    def change(self, document: str, seed: str) -> Callable[[str], str]:
        """How texts of a document are written anew."""
        rng, others, taken = random.Random(seed), dict[str, str](), {document}
        for word, place in self.words[document].items():
            pool = {other for other in self._pools[place] if not self._holders[other] & taken} - set(others.values())
            if pool:
                others[word] = rng.choice(sorted(pool))
                if place.startswith(SUBJECT):  # else two words of one name would come together again
                    taken |= self._holders[others[word]]

        def other_word(match: re.Match[str]) -> str:
            own = match[0]
            other = others.get(own.lower(), own)
            if own.isupper() and len(own) > 1:
                return other.upper()
            return other.capitalize() if own[0].isupper() and other.islower() else other

        def other_number(match: re.Match[str]) -> str:
            pool = self._numbers[_DIGIT.sub("0", match[0])]
            return "".join(rng.choice(pool)[place] for place in range(len(match[0])))

        return lambda text: _NUMBER.sub(other_number, _WORD.sub(other_word, text))


def _text(records: Sequence[Record]) -> str:
    return "\n".join(text for record in records for text in (*(m.content for m in record.messages), record.prompt, record.answer))


def _named(text: str, subject: set[str]) -> Iterator[tuple[str, str]]:
    """Words of names in small letters, each with the kind of name and its place in it."""
    for start, stop in names(text):
        parts = _WORD.findall(text[start:stop])
        for number, part in enumerate(parts):
            yield part.lower(), f"{_kind(part, subject)}, {_place(number, len(parts))}"


def _kind(word: str, subject: set[str]) -> str:
    if word.lower() in MONTHS:
        return "month"
    if word.lower() in subject:
        return SUBJECT
    return "capitals" if word.isupper() else "other"


def _place(number: int, length: int) -> str:
    if length == 1:
        return "alone"
    return "first" if number == 0 else "last" if number == length - 1 else "between"
