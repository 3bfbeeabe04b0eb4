"""What is written like a name in a text."""

from __future__ import annotations

import re

_SHORTEST = 3  # letters of a name of one word, at least
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0980-\u0dff\u0e31-\u0e4e"  # they belong to a letter
_WORD = re.compile(rf"[^\W\d_][\w{_MARKS}'’.-]*")
_FIRST = """who what where when which why how whose whom is are was were do does did has have had can could would will should
tell name in on at by for from to of the a an as please give list describe explain summarise summarize
and but if with while yes no some his her their its it he she they this these that those there one both
since after before during despite although though because also another other many most all each i we you my our your"""
_TITLES = frozenset(["mrs", "prof", "rev", "hon", "capt", "col", "gen", "lieut", "sgt"])
_FIRST_WORDS = frozenset(word.capitalize() for word in _FIRST.split())


def names(text: str) -> list[tuple[int, int]]:
    """`(start, stop)` of what is written like a name: words that begin with a capital, one after another.

    A single word that begins a sentence is none, nor is one of less than three letters.
    """
    spans: list[tuple[int, int]] = []
    for start, stop in _capital_runs(text):
        first, _, rest = text[start:stop].partition(" ")
        if _begins_sentence(text, start):
            if rest and _bare(first) in _FIRST_WORDS:
                start += len(first) + 1
            elif not rest:
                continue
        stop -= len(text[start:stop]) - len(_bare(text[start:stop]))
        if " " in text[start:stop] or stop - start >= _SHORTEST:
            spans.append((start, stop))
    return spans


def _capital_runs(text: str) -> list[tuple[int, int]]:
    """Words that begin with a capital, or with a letter of a script that has none, as long as one space is between them."""
    runs: list[tuple[int, int]] = []
    for match in _WORD.finditer(text):
        start, stop = match.span()
        if text[start].islower():
            continue
        if runs and text[runs[-1][1] : start] == " " and not _ends_sentence(text[runs[-1][0] : runs[-1][1]]):
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
    return runs


def _ends_sentence(words: str) -> bool:
    """Whether words end with a full stop that is no abbreviation's: of a title, of one or two letters, or of several."""
    last = words.split(" ")[-1]
    return last.endswith(".") and len(last) > 3 and "." not in last[:-1] and last[:-1].lower() not in _TITLES


def _begins_sentence(text: str, start: int) -> bool:
    before = text[:start].rstrip(" \"'“”‘’(")
    return not before or before[-1] in ".!?:\n"


def _bare(text: str) -> str:
    """Without punctuation and a possessive at the end."""
    return re.sub(r"(?:['’]s|['’])?[.,;:!?'’-]*$", "", text)
