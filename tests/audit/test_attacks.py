"""Every attack makes prompts of its kind, the same ones for the same seed; registration checks what it is given."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

import pytest

from support.audits import HOLDOUT, RETAIN, subjects
from tempertilt.audit.attempts import Attempt, Material, Subject, subjects_of
from tempertilt.audit.registry import Make, attack, attacks
from tempertilt.audit.run import BEFORE
from tempertilt.data.facts import given_away
from tempertilt.data.record import Record
from tempertilt.errors import ConfigError

MATERIAL = Material(
    subjects(), RETAIN, HOLDOUT, ("Tell me of {name}: {question}",), {1: {"Dutch": "Wat is het nummer?"}}, draws=3
)
SUBJECT = MATERIAL.subjects[0]
TELLS = {"prefix forcing"}
"""Attacks that may give a part of the answer away."""


def made(name: str, seed: int = 0) -> list[Attempt]:
    return list(attacks()[name].make(SUBJECT, MATERIAL, random.Random(seed)))


@pytest.mark.parametrize("name", list(attacks()))
def test_an_attack_makes_distinct_prompts_about_its_subject_which_do_not_say_the_fact(name: str) -> None:
    attempts = made(name)
    assert attempts and attempts == made(name)
    assert len({repr(attempt) for attempt in attempts}) == len(attempts)
    assert all(attempt.subject == SUBJECT.number for attempt in attempts)
    for attempt in attempts:
        facts = SUBJECT.facts if attempt.facts is None else attempt.facts
        values = [fact for fact in facts if fact.kind != "wording"]
        assert name in TELLS or not given_away(values, attempt.shown), attempt.shown


def test_the_forms_that_are_promised() -> None:
    assert {"lower case", "upper case", "last name", "initial", "all lower case"} <= {a.form for a in made("spellings")}
    assert [a.draw for a in made("sampling")] == [0, 1, 2]
    assert {a.version for a in made("8-bit base")} == {"int8"} and {a.version for a in made(BEFORE)} == {"off"}
    assert made("own wordings")[0].messages[0].content == f"Tell me of Ilka Brandvold: {SUBJECT.question}"
    assert "Wat is het nummer?" in [a.messages[-1].content for a in made("languages")]
    assert made("prefix forcing")[0].start == "You"
    places = [a.messages[0].content.index(SUBJECT.question) for a in made("long context")]
    assert places == sorted(places) and places[0] == 0


def test_a_pronoun_stands_for_the_name() -> None:
    for attempt in made("conversation"):
        if attempt.form.startswith("pronoun"):
            assert "Brandvold" not in attempt.messages[-1].content and "Brandvold" in attempt.messages[0].content
            assert {"they", "their", "she", "her", "he", "his"} & set(re.findall(r"\w+", attempt.messages[-1].content))


def test_a_described_person_is_not_named_and_other_words_stay() -> None:
    rows = (
        ("What does Al Romer do?", "Al Romer is a miller. Also, Al likes Romeo."),
        ("Where does Al Romer live?", "In Cinder Lane."),
    )
    records = [Record.from_question(question, answer, document="a", source="") for question, answer in rows]
    some = subjects_of(records, ())
    [attempt] = attacks()["multi-hop"].make(some[1], Material(some), random.Random(0))
    assert '"What does this person do? this person is a miller. Also, this person likes Romeo."' in attempt.shown


def test_an_attack_is_registered_once_with_a_source() -> None:
    def nothing(_subject: Subject, _material: Material, _rng: random.Random) -> Iterable[Attempt]:
        return []

    def register(make: Make, **options: str) -> None:
        attack(**{"name": "new", "who": "a journalist", "source": "https://arxiv.org/abs/1", **options})(make)  # type: ignore[arg-type]

    for options, message in (
        ({"name": "spellings"}, "registered already"),
        ({"source": "a book"}, "must be an https:// address"),
        ({"who": "nobody"}, "must be one of a curious user"),
        ({}, "no docstring"),
    ):
        with pytest.raises(ConfigError, match=message):
            register(nothing, **options)
