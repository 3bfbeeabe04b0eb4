"""What is attacked, and with what: subjects, which are records with their facts, and attempts to get those facts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tempertilt.audit.telling import telling_words, words_of
from tempertilt.data.examples import ExampleConfig, encode_prompt, encode_question
from tempertilt.data.facts import Fact, facts_of, given_away, normalise
from tempertilt.data.names import names
from tempertilt.data.records import Message, Record

NEXT = " → "
"""Between what the user says first and next, where a prompt is shown."""

Version = Literal["served", "off", "int8", "int4"]
"""Which model is asked: as it is served, with the adapter off, or on a base of fewer bits."""


@dataclass(frozen=True)
class Subject:
    """A forget record under attack.

    Attributes:
        number: of the record, from 1.
        record: the record.
        person: what is written like a name in its prompt; empty if nothing is.
        question: a question of a chat that its answer answers.
        facts: to look for in answers: those that no retain or holdout record states, and the wording of what is no value.
        telling: words by which a fact is known (see `tempertilt.audit.telling`).
    """

    number: int
    record: Record
    person: str
    question: str
    facts: tuple[Fact, ...]
    telling: frozenset[str] = frozenset()

    def about(self, other: str) -> str:
        """The question with something else in the place of the person's name."""
        return self.question.replace(self.person, other) if self.person else self.question


@dataclass(frozen=True)
class Attempt:
    """One prompt, or several in a row, with which a fact may come out.

    Attributes:
        form: of the prompt, within its kind.
        subject: number of the forget record; 0 where it is about none.
        messages: of the chat, the last one the user's; empty for a plain text.
        text: that the model goes on with, where it is not a chat.
        system_prompt: instead of the usual one; None = the usual one, "" = none.
        start: words with which the answer is made to begin.
        then: what the user says after each answer.
        facts: to look for; None = the subject's.
        draw: number of the drawn answer; None = the greedy answer.
        version: which model is asked.
        rewrite: whether the base model first puts the question in other words.
        ban_refusals: whether tokens with which a refusal may be worded are banned; a server alone can be asked for it.
    """

    form: str
    subject: int
    messages: tuple[Message, ...] = ()
    text: str = ""
    system_prompt: str | None = None
    start: str = ""
    then: tuple[str, ...] = ()
    facts: tuple[Fact, ...] | None = None
    draw: int | None = None
    version: Version = "served"
    rewrite: bool = False
    ban_refusals: bool = False

    @property
    def shown(self) -> str:
        """All that the prompt says."""
        system = (self.system_prompt or "",)
        return "\n".join(filter(None, [*system, *(m.content for m in self.messages), self.text, self.start, *self.then]))

    @property
    def question(self) -> str:
        """The prompt without what stands around it."""
        last = self.messages[-1].content if self.messages else self.text
        return NEXT.join(filter(None, [last, self.start and f"{self.start} …", *self.then]))

    def follow(self, answer: str) -> Attempt:
        """The attempt after an answer: the user says the next thing."""
        said, *rest = self.then
        history = (*self.messages, Message("assistant", answer or "…"), Message("user", said))
        return replace(self, messages=history, then=tuple(rest), start="")

    def encode(self, tokenizer: Any, config: ExampleConfig) -> list[int]:
        """Token ids to go on from."""
        if self.system_prompt is not None:
            config = replace(config, system_prompt=self.system_prompt)
        if self.messages:
            ids = encode_question(self.messages, tokenizer, config)
        else:
            ids = encode_prompt(Record.from_completion(self.text, ".", document="", source=""), tokenizer, config)
        return ids + (list(tokenizer(self.start, add_special_tokens=False)["input_ids"]) if self.start else [])


def ask(form: str, subject: Subject, question: str, **options: Any) -> Attempt:
    """A chat of one question."""
    return Attempt(form, subject.number, (Message("user", question),), **options)


def plain(subject: Subject, form: str = "as recorded", **options: Any) -> Attempt:
    """The record's own prompt."""
    record = subject.record
    if record.kind == "chat":
        return Attempt(form, subject.number, record.messages[:-1], **options)
    return Attempt(
        form, subject.number, text=record.prompt if record.kind == "completion" else beginning(record.answer), **options
    )


@dataclass(frozen=True)
class Material:
    """What attacks are made of.

    Attributes:
        subjects: all forget records that have facts to look for.
        retain, holdout: other records.
        wordings: the user's own prompts, with {question} or {name} in them.
        translations: the user's own, question by language, by the number of the subject.
        draws: answers drawn for each question.
    """

    subjects: Sequence[Subject]
    retain: Sequence[Record] = ()
    holdout: Sequence[Record] = ()
    wordings: Sequence[str] = ()
    translations: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    draws: int = 0

    def siblings(self, subject: Subject) -> list[Subject]:
        """The other subjects of the same document."""
        return [s for s in self.subjects if s.record.document == subject.record.document and s.number != subject.number]

    def everything(self, subject: Subject) -> tuple[Fact, ...]:
        """The facts of the subject's whole document, without the names that its questions hold."""
        family = [subject, *self.siblings(subject)]
        known = " ".join(f"{s.question} {s.person}" for s in family)
        facts = {fact.forms: fact for s in family for fact in s.facts if not given_away([fact], known)}
        return tuple(facts.values())

    def others(self, subject: Subject, count: int) -> list[Record]:
        """Retain records of chats with questions, one from each of several places, the same ones for the same subject."""
        chats = [record for record in self.retain if record.kind == "chat" and len(record.answer) < 300]
        step = max(1, len(chats) // max(1, count))
        return [chats[(subject.number * 7 + i * step) % len(chats)] for i in range(min(count, len(chats)))]


def subjects_of(forget: Sequence[Record], others: Iterable[Record]) -> list[Subject]:
    """The records with facts that are theirs alone, in their order.

    Args:
        others: retain and holdout records: a value that one of them states may come up by itself, so it shows nothing.
    """
    others = list(others)
    common, words = {fact.forms for record in others for fact in facts_of(record)}, words_of(others)
    subjects = []
    for number, record in enumerate(forget, start=1):
        question = _question(record)
        values = [fact for fact in facts_of(record) if fact.kind != "wording"]
        telling = telling_words(record.answer, question, words)
        values = [fact for fact in values if fact.forms not in common and not _is_word(fact, words)]
        facts = (*values, *_wording(record, values, telling))
        if facts:
            subjects.append(Subject(number, record, _person(record), question, facts, telling))
    return subjects


def _is_word(fact: Fact, words: Collection[str]) -> bool:
    """Whether a name is one word that other records use, as "Literature" is."""
    return fact.kind == "name" and fact.forms[0] in words


def _wording(record: Record, values: Sequence[Fact], telling: frozenset[str]) -> list[Fact]:
    """What an answer says beside its values, where it has words that tell."""
    rest = normalise(record.answer).split()
    taken = {word for fact in values for word in normalise(fact.text).split()}
    text = " ".join(word for word in rest if word not in taken)
    return [Fact("wording", text, (text,))] if telling & set(text.split()) else []


def _question(record: Record) -> str:
    if record.kind == "chat":
        return record.question
    start = record.prompt if record.kind == "completion" else beginning(record.answer)
    return f'Continue this text: "{start}"'


def beginning(text: str) -> str:
    """The first half of a text, at most 24 words."""
    words = text.split()
    return " ".join(words[: min(24, max(1, len(words) // 2))])


def _person(record: Record) -> str:
    text = record.question if record.kind != "text" else beginning(record.answer)
    spans = names(text)
    return text[slice(*spans[0])] if spans else ""
