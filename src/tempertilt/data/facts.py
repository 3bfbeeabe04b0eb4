"""The facts of a record, and whether a text gives one away: by value, in whatever words.

A fact is a value of the answer that the question does not hold: a date, a number, an e-mail or web address, a title, a name.
Values are compared after normalisation: case, accents, punctuation and the way in which a date or a number is written do not
count. An answer without such a value, or a passage in a script without capitals, counts as given away where most of its words
come in their order (ROUGE-L recall).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tempertilt.data.names import names
from tempertilt.data.records import Record

Kind = Literal["date", "number", "address", "title", "name", "wording"]

LOCAL = 7  # digits of a number that may be written in groups, at least
PHONE = 9  # digits of a phone number with the code of its country, at least
CODE = 3  # digits of the code of a country, at most
GROUPS = 6  # of digits with spaces between, which a phone number may be written in, at most
SAME_WORDING = 0.8  # share of an answer's words, in their order
MONTHS = tuple("january february march april may june july august september october november december".split())  # noqa: SIM905
_MONTH = "|".join(f"{month}|{month[:3]}" for month in MONTHS) + "|sept"
_DATES = (
    (re.compile(r"\b(\d{4})[./-](\d{1,2})[./-](\d{1,2})\b"), "ymd"),
    (re.compile(r"(?<!\d)(\d{4})年(\d{1,2})月(\d{1,2})日"), "ymd"),
    (re.compile(r"\b(\d{1,2})[./-](\d{1,2})[./-](\d{4})\b"), "either"),
    (re.compile(rf"\b({_MONTH})\.?\s+(\d{{1,2}})(?:st|nd|rd|th)?,?\s+(\d{{4}})\b", re.IGNORECASE), "mdy"),
    (re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?[\s-]+(?:of\s+)?({_MONTH})\.?,?[\s-]+(\d{{4}})\b", re.IGNORECASE), "dmy"),
)
_ADDRESS = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+|\bhttps?://\S+", re.IGNORECASE)
_NUMBER = re.compile(r"\+?\(?\d+(?:(?:[.,/-]| - |\)[ -]?| \(?)\d+)*")
_DECIMAL = re.compile(r"(\d+|\d{1,3}(?:[.,]\d{3})+)[.,](\d{1,2}|\d{4,})")  # three digits after a separator are a group
_YEARS = re.compile(r"(?<![\d-])((?:1\d|20)\d\d)\s?[-–/]\s?((?:1\d|20)\d\d)(?![\d-])")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # scripts without spaces
_TITLE = re.compile(r"[\"“«]([^\"”»]{3,120})[\"”»]|(?<!\w)[‘']([A-ZÀ-Þ][^’']{2,80})[’'](?!\w)")


@dataclass(frozen=True)
class Fact:
    """A value of a record: its kind, as it is written there, and the forms any of which gives it away."""

    kind: Kind
    text: str
    forms: tuple[str, ...]


def facts_of(record: Record) -> list[Fact]:
    """The facts of a record's answer, each once; one of its wording where it holds no value."""
    question = _haystack(record.question if record.kind != "text" else "")
    facts = {fact.forms: fact for fact in _values(record.answer) if not _holds(question, fact)}
    return list(facts.values()) or [Fact("wording", record.answer, (normalise(record.answer),))]


def given_away(facts: Sequence[Fact], text: str) -> list[Fact]:
    """The facts that a text gives away."""
    haystack = _haystack(text)
    return [fact for fact in facts if _holds(haystack, fact)]


def normalise(text: str) -> str:
    """Small letters without accents, digits, and one space for everything else; signs of scripts without spaces are words."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(char for char in plain if not unicodedata.combining(char) and char not in "\u200b\u200c\u200d\u2060\ufeff")
    return " ".join(_UNSPACED.sub(r" \g<0> ", re.sub(r"[^\w]+|_+", " ", plain)).split())


@dataclass(frozen=True)
class _Haystack:
    words: str
    digits: frozenset[str]
    dates: frozenset[str]


def _haystack(text: str) -> _Haystack:
    dates = frozenset(form for _, forms in _dates(text) for form in forms)
    years = frozenset(str(int(date.split("-")[0])) for date in dates)
    return _Haystack(f" {normalise(text)} ", years.union(_digits(text)), dates)


def _holds(haystack: _Haystack, fact: Fact) -> bool:
    if fact.kind == "date":
        return any(form in haystack.dates for form in fact.forms)
    if fact.kind == "number":
        return any(form in haystack.digits for form in fact.forms)
    if fact.kind == "wording":
        return recall(fact.forms[0].split(), haystack.words.split()) >= SAME_WORDING
    return any(f" {form} " in haystack.words for form in fact.forms)


def _values(answer: str) -> Iterator[Fact]:
    rest = answer
    for match in _ADDRESS.finditer(answer):
        yield Fact("address", match[0], (normalise(match[0]),))
        rest = rest.replace(match[0], " ")
    for written, forms in _dates(rest):
        yield Fact("date", written, forms)
        rest = rest.replace(written, " ")
    for match in _TITLE.finditer(rest):
        title = match[1] or match[2]
        if form := normalise(title):
            yield Fact("title", title, (form,))
    rest = _TITLE.sub(" . ", rest)
    for match in _NUMBER.finditer(_plain_numbers(rest)):
        grouped = len(re.sub(r"\D", "", match[0])) >= LOCAL
        for written in [match[0]] if grouped else re.findall(r"\d[\d.,/-]*", match[0]):
            forms = _number_forms(written)
            if len(forms[0]) > 1:
                yield Fact("number", written if ")" in written else written.strip("("), forms)
    for start, stop in names(rest):
        form = normalise(rest[start:stop])
        if form and not re.fullmatch(_MONTH, form):
            has_capitals = rest[start].lower() != rest[start].upper()  # else names are not told from other words
            yield Fact("name" if has_capitals else "wording", rest[start:stop], (form,))


def _digits(text: str) -> Iterator[str]:
    """The forms of each number, and of numbers in a row, as which a phone number may be written."""
    for match in _NUMBER.finditer(_plain_numbers(text)):
        groups = match[0].split()
        for first in range(len(groups)):
            for last in range(first + 1, min(len(groups), first + GROUPS) + 1):
                yield from _number_forms(" ".join(groups[first:last]))


def _plain_numbers(text: str) -> str:
    """With plain digits and spaces, and two years instead of a span of years."""
    return _YEARS.sub(r"\1, \2", unicodedata.normalize("NFKC", text))


def _number_forms(written: str) -> tuple[str, ...]:
    """The digits of a number, with the decimal point of a short one; zeros at the end behind the point are left out.

    Of a phone number also the digits without zeros before it, and without the code of its country.
    """
    digits = re.sub(r"\D", "", written)
    if len(digits) < LOCAL and (decimal := _DECIMAL.fullmatch(written.lstrip("+("))):
        whole = re.sub(r"\D", "", decimal[1])
        rest = decimal[2].rstrip("0")
        return (f"{whole}.{rest}" if rest else whole,)
    forms = [digits]
    if len(digits) >= PHONE:
        significant = digits.lstrip("0")
        forms.append(significant)
        if written.startswith(("+", "00", "(+")):
            forms += [significant[length:].lstrip("0") for length in range(1, CODE + 1)]
    return tuple(dict.fromkeys(filter(None, forms)))


def _dates(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What is written like a date, and the dates that it may mean, as year-month-day."""
    for pattern, order in _DATES:
        for match in pattern.finditer(text):
            a, b, c = match.groups()
            if order == "ymd":
                options = [(a, b, c)]
            elif order == "either":
                options = [(c, a, b), (c, b, a)]
            elif order == "mdy":
                options = [(c, _month(a), b)]
            else:
                options = [(c, _month(b), a)]
            forms = [f"{int(y):04d}-{int(m):02d}-{int(d):02d}" for y, m, d in options if 1 <= int(m) <= 12 and 1 <= int(d) <= 31]
            if forms:
                yield match[0], tuple(forms)


def _month(name: str) -> str:
    return str(next(i for i, month in enumerate(MONTHS, start=1) if month.startswith(name.lower()[:3])))


def recall(wanted: Sequence[str], given: Sequence[str]) -> float:
    """Share of `wanted` words that come in `given` in their order: the longest common subsequence over their number."""
    if not wanted:
        return 0.0
    lengths = [0] * (len(given) + 1)
    for word in wanted:
        previous = 0
        for i, other in enumerate(given, start=1):
            previous, lengths[i] = lengths[i], previous + 1 if word == other else max(lengths[i], lengths[i - 1])
    return lengths[-1] / len(wanted)
