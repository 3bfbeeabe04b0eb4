"""The generator of fictitious authors: always the same, never ambiguous, its facts where they belong."""

from __future__ import annotations

import hashlib
import json

import pytest

from tempertilt.data.fictional import FictionalConfig, as_rows, fictional_authors, general_knowledge
from tempertilt.data.records import Record
from tempertilt.errors import ConfigError

BIG = fictional_authors(FictionalConfig(n_authors=500, questions_per_author=12, n_perturbed=5))


def test_it_is_the_same_everywhere() -> None:
    text = json.dumps(as_rows(fictional_authors()), ensure_ascii=False, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == "1d1c6505c43ee86901058f8acebec3d3e9f44ffa9b4edd115fe6f4fbd217b122"


def test_an_author_does_not_depend_on_how_many_there_are() -> None:
    few = fictional_authors(FictionalConfig(n_authors=3, questions_per_author=12, n_perturbed=5))
    assert few == BIG[: len(few)]
    assert fictional_authors(FictionalConfig(seed=1)) != fictional_authors()


def test_questions_and_answers_are_unique_and_name_their_author() -> None:
    assert len({record.question for record in BIG}) == len({record.answer for record in BIG}) == len(BIG) == 6000
    by_author: dict[str, list[str]] = {}
    for record in BIG:
        by_author.setdefault(record.document, []).append(record.question)
    assert len(by_author) == 500 and all(len(questions) == 12 for questions in by_author.values())


def test_facts_are_in_the_right_answers_and_only_there() -> None:
    for record in BIG:
        assert record.fact in record.answer and record.fact in record.paraphrased_answer
        assert record.answer != record.paraphrased_answer and record.question != record.paraphrased_question
        assert len(set(record.perturbed_answers)) == 5
        assert record.paraphrased_answer not in record.perturbed_answers
        assert "{" not in record.question + record.answer + record.paraphrased_answer + "".join(record.perturbed_answers)


def test_rows_are_records() -> None:
    for row in as_rows(BIG[:20]) + general_knowledge():
        record = Record.from_question(str(row["question"]), str(row["answer"]), document=str(row["document"]), source="here")
        assert record.answer == row["answer"]
    assert len({row["question"] for row in general_knowledge()}) >= 20


@pytest.mark.parametrize("options", [{"n_authors": 0}, {"n_authors": 901}, {"questions_per_author": 13}, {"n_perturbed": 6}])
def test_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be a whole number from 1 to"):
        FictionalConfig(**options)
