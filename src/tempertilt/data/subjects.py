"""Whom records are about, by their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tempertilt.data.names import names
from tempertilt.data.record import Record

MOST = 0.5  # of a document's records hold the name of whom they are about
_WORD = re.compile(r"\w{3,}")


def subject_words(records: Iterable[Record]) -> set[str]:
    """Words, in lower case, of the names of whom records are about: names of several words in most prompts of a document."""
    documents: dict[str, list[set[str]]] = {}
    for record in records:
        text = _asked(record)
        found = [text[start:stop] for start, stop in names(text)]
        words = {word for name in found if " " in name for word in words_in(name)}
        documents.setdefault(record.document, []).append(words)
    out: set[str] = set()
    for rows in documents.values():
        counts = Counter(word for words in rows for word in words)
        out |= {word for word, count in counts.items() if count >= MOST * len(rows)}
    return out


def subject_names(records: Iterable[Record]) -> dict[str, str]:
    """By document the name, of several words, of whom its records are about; documents that are about nobody are left out."""
    documents: dict[str, list[Record]] = {}
    for record in records:
        documents.setdefault(record.document, []).append(record)
    out = {}
    for document, some in documents.items():
        words = subject_words(some)
        spans = (text[start:stop] for text in map(_asked, some) for start, stop in names(text))
        counts = Counter(name for name in spans if " " in name and words & words_in(name))
        if counts:
            out[document] = counts.most_common(1)[0][0]
    return out


def words_in(text: str) -> set[str]:
    """Words of a text of three letters or more, in lower case."""
    return set(_WORD.findall(text.lower()))


def words_of(record: Record) -> set[str]:
    """All words of a record of three letters or more, in lower case."""
    return words_in(f"{_asked(record)} {record.answer}")


def _asked(record: Record) -> str:
    """The prompt; of a plain text, the text."""
    if record.kind == "chat":
        return "\n".join(message.content for message in record.messages[:-1])
    return record.prompt or record.answer
