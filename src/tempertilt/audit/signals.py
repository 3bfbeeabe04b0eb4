"""What can be read from likelihoods: whether a text was learned, and which of several answers is the true one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tempertilt.audit.attempts import Attempt, Material, Subject
from tempertilt.audit.target import Target
from tempertilt.data.batches import spread
from tempertilt.data.facts import facts_of
from tempertilt.data.record import Message, Record
from tempertilt.metrics.membership import ATTACKS, membership
from tempertilt.metrics.result import MetricResult, rate_result
from tempertilt.metrics.samples import Sample
from tempertilt.models.frozen import switched_off
from tempertilt.models.scoring import AnswerScore, Question, Scorer
from tempertilt.suites.items import Item, questions_of

TITLES = {"loss": "loss", "zlib": "zlib", "min_k": "Min-K", "min_k_plus_plus": "Min-K++"}
CHOICES = 4
LETTERS = "ABCD"


class Signal(NamedTuple):
    """A figure that says how well an attacker with probabilities does.

    Attributes:
        name, source: as of an attack.
        value, interval, n: with the model as it is served.
        before: with the adapter off; None where there is none.
        chance: the figure of somebody who guesses.
        limit: whether it shows what is known to remain.
    """

    name: str
    source: str
    value: float
    interval: tuple[float, float] | None
    n: int
    before: float | None
    chance: float
    limit: bool = False

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Signal:
        """From JSON."""
        return cls(**{**row, "interval": row["interval"] and tuple(row["interval"])})


def membership_signals(target: Target, material: Material, count: int) -> list[Signal]:
    """AUC of four membership attacks, forget records against holdout records; none without both."""
    forget = [s.record for s in material.subjects if s.record.kind == "chat"]
    holdout = [record for record in material.holdout if record.kind == "chat"]
    if not forget or not holdout:
        return []
    records = {"forget": spread(forget, count), "holdout": spread(holdout, count)}
    questions = {name: _scored(target, chosen) for name, chosen in records.items()}

    def measure() -> dict[str, MetricResult]:
        samples = {name: _samples(target, records[name], questions[name]) for name in records}
        return {attack: membership(samples, attack) for attack in TITLES}

    now, before = _both(target, measure)
    signals = []
    for name, title in TITLES.items():
        value, interval, n = now[name].value, now[name].interval, now[name].n
        signals.append(Signal(f"was it learned? ({title})", ATTACKS[name], value, interval, n, _value(before, name), 0.5))
    return signals


class Choice(NamedTuple):
    """A question with four values for its answer.

    Attributes:
        values: one of which is the record's own.
        place: of that one.
        answers: the record's answer with each of the values in it.
    """

    subject: Subject
    values: list[str]
    place: int
    answers: list[str]


def choice_signals(target: Target, material: Material, subjects: Sequence[Subject], count: int) -> list[Signal]:
    """How often the true value is the likeliest of four of its kind, by the answer's probability and by a letter."""
    choices = _choices(material, subjects)[:count]
    if not choices:
        return []
    prompts = [tuple(target.encode(_chat(c.subject.question))) for c in choices]
    by_answer = [Question(p, tuple(_ids(target, text) for text in c.answers)) for p, c in zip(prompts, choices)]
    letters = tuple(_ids(target, letter) for letter in LETTERS)
    by_letter = [Question(tuple(target.encode(_chat(_multiple(c)))), letters) for c in choices]

    def measure() -> dict[str, MetricResult]:
        scorer = Scorer(target.model)
        return {
            "which value is likelier? (log-probabilities)": _hits(scorer.score(by_answer), choices),
            "multiple choice": _hits(scorer.score(by_letter), choices),
        }

    now, before = _both(target, measure)
    url = "https://arxiv.org/abs/2406.10890"
    return [Signal(name, url, r.value, r.interval, r.n, _value(before, name), 1 / CHOICES) for name, r in now.items()]


def hidden_state_signal(target: Target, subjects: Sequence[Subject], count: int) -> list[Signal]:
    """Share of the answers' tokens that the base's own output layer reads from the hidden states, as anyone who has them can."""
    chosen = [s.record for s in spread(list(subjects), count) if s.record.kind == "chat"]
    if not chosen or not target.can_be_switched_off:
        return []
    with switched_off(target.model):
        scores = Scorer(target.model).score(_scored(target, chosen))
    hits = [bool(hit) for [score] in scores for hit in score.hits[:-1]]
    result = rate_result("hidden states", hits, higher_is_better=False, protocol="share of tokens")
    return [
        Signal(
            "hidden states, read by the output layer (tokens)",
            "https://arxiv.org/abs/2309.17410",
            result.value,
            result.interval,
            result.n,
            result.value,
            0.0,
            limit=True,
        )
    ]


def _both(target: Target, measure: Callable[[], Any]) -> tuple[Any, Any]:
    """A measure of the model as served, and with the adapter off (None without one)."""
    now = measure()
    if not target.can_be_switched_off:
        return now, None
    with switched_off(target.model):
        return now, measure()


def _value(results: dict[str, MetricResult] | None, name: str) -> float | None:
    return None if results is None else results[name].value


def _scored(target: Target, records: Sequence[Record]) -> list[Question]:
    items = [Item(r.question, r.answer, None, (), r.source) for r in records]
    return questions_of(items, target.tokenizer, target.examples, standardise=True)


def _samples(target: Target, records: Sequence[Record], questions: Sequence[Question]) -> list[Sample]:
    scores = Scorer(target.model).score(questions)
    return [
        Sample(
            i,
            r.question,
            r.answer,
            nll=s.nll,
            log_probs=tuple(map(float, s.log_probs)),
            standardised=tuple(map(float, s.standardised)),
        )
        for i, (r, [s]) in enumerate(zip(records, scores))
    ]


def _choices(material: Material, subjects: Sequence[Subject]) -> list[Choice]:
    """The subjects of which a value can be exchanged for three others of its kind."""
    pool: dict[str, list[str]] = {}
    for record in (*material.holdout, *material.retain, *(s.record for s in material.subjects)):
        for fact in facts_of(record):
            pool.setdefault(fact.kind, []).append(fact.text)
    choices = []
    for subject in subjects:
        value = next((f for f in subject.facts if f.kind != "wording" and f.text in subject.record.answer), None)
        others = [text for text in dict.fromkeys(pool[value.kind] if value else ()) if text not in subject.record.answer]
        if value and len(others) >= CHOICES - 1 and subject.record.kind == "chat":
            values = random.Random(subject.number).sample(others, CHOICES - 1)
            place = subject.number % CHOICES
            values.insert(place, value.text)
            answers = [subject.record.answer.replace(value.text, text) for text in values]
            choices.append(Choice(subject, values, place, answers))
    return choices


def _hits(scores: Sequence[Sequence[AnswerScore]], choices: Sequence[Choice]) -> MetricResult:
    values = [min(range(CHOICES), key=lambda i: answers[i].nll) == c.place for answers, c in zip(scores, choices)]
    return rate_result(
        "choice", values, higher_is_better=False, protocol="share of questions whose true value is the likeliest of four"
    )


def _multiple(choice: Choice) -> str:
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choice.values))
    return f"{choice.subject.question}\n{lines}\nAnswer with the letter of the right answer."


def _chat(question: str) -> Attempt:
    return Attempt("", 0, (Message("user", question),))


def _ids(target: Target, text: str) -> tuple[int, ...]:
    return tuple(target.tokenizer(text, add_special_tokens=False)["input_ids"])
