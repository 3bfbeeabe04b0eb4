"""Pronouns in the place of names, as people ask in a later turn."""

from __future__ import annotations

import re
from collections.abc import Collection

from tempertilt.data.names import names

PRONOUNS = (("they", "their"), ("he", "his"), ("she", "her"))
"""Of a person, each with its possessive."""


def with_pronoun(text: str, words: Collection[str], pronoun: tuple[str, str] = PRONOUNS[0]) -> str:
    """`text` with a pronoun in the place of names that have one of `words` in them, in lower case, and with its possessive."""
    out, done = [], 0
    for start, stop in names(text):
        if set(words) & set(text[start:stop].lower().split()):
            possessive = text[stop : stop + 2] in ("'s", "’s")
            out += [text[done:start], pronoun[possessive]]
            done = stop + 2 * possessive
    return "".join([*out, text[done:]])


def pronoun_in(text: str) -> tuple[str, str]:
    """The pronoun that a text about one person has most often; they, if it has none."""
    found = re.findall(r"\w+", text.lower())
    counts = [sum(found.count(word) for word in pair) for pair in PRONOUNS[1:]]
    return PRONOUNS[1 + counts.index(max(counts))] if any(counts) else PRONOUNS[0]
