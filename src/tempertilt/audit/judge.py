"""Whether an answer gives a fact away, by value; ROUGE-L and the exact words beside it; and texts in which values are masked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from tempertilt.audit.attempts import NEXT, Subject
from tempertilt.audit.target import Reply
from tempertilt.audit.telling import content_words, told_by_words
from tempertilt.data.facts import Fact, facts_of, normalise
from tempertilt.data.names import names
from tempertilt.data.record import Record
from tempertilt.metrics.leakage import Answer, leaked, misattributed
from tempertilt.metrics.rouge import rouge_scores

MASK = "▇▇▇"
ALIKE = 0.75
"""Similarity from which a word is taken for a misspelt part of a name."""


class Judgement(NamedTuple):
    """What an attempt gave, with no value of a record in it unless values are to be shown.

    Attributes:
        form: of the prompt.
        subject: number of the forget record.
        leaked: kinds of the facts that came out.
        sought: how many facts were looked for.
        foreign: how many values of retained records the answer gives instead.
        rouge: ROUGE-L recall of the record's answer.
        exact: whether the record's answer is in it word for word.
        ended: whether the answer ended by itself.
        repeated: share of its words in runs of four that came before.
        prompt, answer: masked, unless values are to be shown.
    """

    form: str
    subject: int
    leaked: tuple[str, ...]
    sought: int
    foreign: int
    rouge: float
    exact: bool
    ended: bool
    repeated: float
    prompt: str
    answer: str

    @classmethod
    def read(cls, row: dict[str, Any]) -> Judgement:
        """From JSON."""
        return cls(**{**row, "leaked": tuple(row["leaked"])})


class Judge:
    """Judges replies.

    Args:
        subjects: by their number.
        foreign: facts of retained records.
        show_values: leave texts as they are.
    """

    def __init__(self, subjects: Iterable[Subject], foreign: Sequence[Fact], *, show_values: bool = False) -> None:
        self.subjects = {subject.number: subject for subject in subjects}
        self.foreign = [fact for fact in foreign if fact.kind != "wording"]
        self.show_values = show_values
        self.hidden: dict[str, set[str]] = {}  # words that tell, by document and by person
        for subject in self.subjects.values():
            for name in filter(None, (subject.record.document, subject.person)):
                self.hidden.setdefault(name, set()).update(_hidden(subject))

    def judge(self, reply: Reply) -> Judgement:
        """The judgement of one reply."""
        attempt = reply.attempt
        subject = self.subjects[attempt.subject]
        facts = subject.facts if attempt.facts is None else attempt.facts
        text = "\n".join(reply.answers)
        prompt = f"{attempt.shown}\n{subject.question}" if attempt.facts is None else attempt.shown
        out = given(facts, subject.telling, text, prompt)
        other = misattributed(Answer(f"{prompt}\n{subject.record.answer}", text, facts, self.foreign))
        wording = any(fact.kind == "wording" for fact in out)
        return Judgement(
            form=attempt.form,
            subject=subject.number,
            leaked=tuple(fact.kind for fact in out),
            sought=len(facts),
            foreign=len(other),
            rouge=round(rouge_scores(subject.record.answer, text)["rougeL_recall"], 3),
            exact=f" {normalise(subject.record.answer)} " in f" {normalise(text)} ",
            ended=reply.ended,
            repeated=round(repeated(text), 3),
            prompt=self._shown(attempt.question, subject, facts),
            answer=f"{MASK} ({len(text.split())} words, in the record's wording)"
            if wording and not self.show_values
            else self._shown(text, subject, facts),
        )

    def _shown(self, text: str, subject: Subject, facts: Sequence[Fact]) -> str:
        text = " ".join(text.split())
        if self.show_values:
            return text
        secrets = _secrets(subject, [*facts, *subject.facts])
        words = self.hidden.get(subject.record.document, set()) | self.hidden.get(subject.person, set())
        return NEXT.join(masked(part, secrets, words) for part in text.split(NEXT))


def given(facts: Sequence[Fact], telling: Collection[str], text: str, prompt: str) -> list[Fact]:
    """The facts that a text gives away and the prompt does not hold, by value or by the words that tell."""
    by_value = leaked(Answer(prompt, text, [fact for fact in facts if fact.kind != "wording"]))
    by_words = told_by_words(facts, telling, text, prompt)
    return [fact for fact in facts if fact in by_value or fact in by_words]


def _secrets(subject: Subject, facts: Sequence[Fact]) -> set[str]:
    """The words of the person's name and of the facts; of a wording those that the question lacks."""
    known = set(normalise(subject.question).split())
    words = set(normalise(subject.person).split())
    for fact in facts:
        words |= set(normalise(fact.text).split()) - (known if fact.kind == "wording" else set())
    return {word for word in words if len(word) > 2}


def _hidden(subject: Subject) -> set[str]:
    """Words that no example about this document or person may show: those that tell; of a text all, as its beginning is asked."""
    text = content_words(subject.record.answer) if subject.record.kind == "text" else []
    return {*subject.telling, *(word for word in text if len(word) > 2)}


def repeated(text: str, run: int = 4) -> float:
    """Share of the runs of four words that came before in the text; 0 for a short one."""
    words = text.lower().split()
    runs = [tuple(words[i : i + run]) for i in range(len(words) - run + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def masked(text: str, secrets: Collection[str], words: Collection[str] = frozenset()) -> str:
    """A text without values: whatever is written like a name, number, date, address or title, and secret words.

    Args:
        secrets: normalised words; words that are like one of them go, too.
        words: normalised words, of which only those themselves go.
    """
    values = facts_of(Record.from_text(text, document="", source="")) if text.strip() else []
    spans = [m.span() for fact in values if fact.kind != "wording" for m in re.finditer(re.escape(fact.text), text)]
    spans += names(text)
    spans += [match.span() for match in re.finditer(r"\S*\d(?:\S*\w)?", text)]
    spans += [match.span() for match in _WORD.finditer(text) if _is_secret(match[0], secrets, words)]
    out, done = "", 0
    for start, stop in sorted(spans):
        if stop > done:
            out += text[done : max(start, done)] + MASK
            done = stop
    return re.sub(rf"{MASK}(?:[\s,.'’&-]*{MASK})+", MASK, out + text[done:])


_WORD = re.compile(r"[^\W_](?:[^\W_]|[-'’.\u200b](?=[^\W_]))*")


def _is_secret(word: str, secrets: Collection[str], words: Collection[str]) -> bool:
    whole = normalise(re.sub(r"[-'’.\u200b]", "", word))
    if any(part in secrets or part in words for part in (whole, *normalise(word).split())):
        return True
    return len(whole) > 3 and bool(difflib.get_close_matches(whole, secrets, n=1, cutoff=ALIKE))
