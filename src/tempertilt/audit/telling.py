"""Words by which a fact is known, where it is no value, or where a value is written in another order.

A word tells if the record's answer holds it, and neither its question, nor a record that is not to be forgotten, nor the list of
function words does. By telling words a text gives away

    a name or title      with three in five of its own
    a short wording      with its longest one, or with two that are neighbours there and in the text
    a longer wording     with half of them, three at least
    any wording          with four in five of all its words in their order, and more than half of those that tell

The longest word of a wording beside values does not count: it may be any verb.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

from tempertilt.data.facts import MONTHS, SAME_WORDING, Fact, normalise, recall
from tempertilt.data.record import Record

SHARE = 0.6
"""Share of a name's or title's telling words."""

SHORT, SHORT_TEXT, LEAST = 5, 10, 3
"""Of a short wording: telling words, and content words, at most. Telling words that a longer one must share, at least."""

ALIKE, LONG = 0.9, 8
"""Words of this many letters and more are the same if they are this similar."""

_LISTED = """
a about above after again against all also although always am among an and another any anybody are around as at away back be
became because been before began being below between both but by came can cannot come could did do does doing done down day
days during each either else ever every everybody few first for from further gave get gets give given gives go goes going got
had has have having he her here hers herself him himself his hour hours how however i if in indeed into is it its itself just
kept know known last later left less like lot made make makes making many may me might mine minute minutes month months more
most much must my myself near never new next no nobody none nor not nothing now of off often old on once one only or other
others our ours out over own part per perhaps put quite rather said same say says see seen set several she should since so
some somebody something soon still such take takes taken than that the their theirs them themselves then there therefore
these they thing things this those though through till time to together too took toward towards two under until up upon us
use used very was way we well went week weeks were what when where whether which while who whole whom whose why will with
within without would year years yes yet you your yours yourself
"""
FUNCTION_WORDS = frozenset(_LISTED.split())
"""English words that tell nothing: of grammar, of time, and the commonest verbs."""


def words_of(records: Iterable[Record]) -> frozenset[str]:
    """All words of some records."""
    texts = (text for r in records for text in (*(m.content for m in r.messages), r.prompt, r.answer))
    return frozenset(word for text in texts for word in normalise(text).split())


def telling_words(text: str, question: str, common: Collection[str]) -> frozenset[str]:
    """The words of a text that tell."""
    words = set(normalise(text).split()) - set(normalise(question).split()) - FUNCTION_WORDS - set(MONTHS)
    return frozenset(word for word in words if word not in common and len(word) > 2 and not word.isdigit())


def told_by_words(facts: Sequence[Fact], telling: Collection[str], text: str, prompt: str) -> list[Fact]:
    """The facts that a text gives away by their telling words, those of the prompt left out.

    Args:
        facts: of one record.
        telling: the telling words of the record.
    """
    alone = all(fact.kind == "wording" for fact in facts)
    known, given = set(normalise(prompt).split()), content_words(text)
    return [
        fact
        for fact in facts
        if _holds(fact, [w for w in content_words(fact.text) if w in telling and w not in known], given, alone)
    ]


def content_words(text: str) -> list[str]:
    """The normalised words of a text, function words left out."""
    return [word for word in normalise(text).split() if word not in FUNCTION_WORDS]


def _holds(fact: Fact, words: list[str], given: list[str], alone: bool) -> bool:
    distinct = set(words)
    if not distinct or fact.kind not in ("name", "title", "wording"):
        return False
    hits = len(distinct & set(given))
    if fact.kind != "wording":
        return hits >= SHARE * len(distinct)
    content = content_words(fact.text)
    if alone and 2 * hits > len(distinct) and recall(content, given) >= SAME_WORDING:
        return True
    if len(distinct) > SHORT or len(content) > SHORT_TEXT:
        return hits >= max(LEAST, len(distinct) / 2)
    pairs = set(pairwise(content)) & set(pairwise(given))
    longest = max(distinct, key=len)
    return any(set(pair) <= distinct for pair in pairs) or (alone and any(_same(longest, word) for word in given))


def _same(word: str, other: str) -> bool:
    if word == other:
        return True
    return len(word) >= LONG and difflib.SequenceMatcher(None, word, other).ratio() >= ALIKE
