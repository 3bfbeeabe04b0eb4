"""Staff of a made-up company: values that a guess does not hit, names that nobody else has."""

from __future__ import annotations

import random

import pytest

from tempertilt.data.fictional_staff import TOPICS, staff_names, staff_records


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.follow_up)
def test_a_value_is_one_of_many(topic) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(0)
    values = [topic.value(rng) for _ in range(20_000)]
    assert len(set(values)) >= 350
    assert max(values.count(value) for value in set(values[:50])) < 150  # of 20,000: less than one in 130


@pytest.mark.parametrize("seed", range(5))
def test_two_of_the_staff_share_a_last_name_and_nobody_else_any(seed: int) -> None:
    names = staff_names(8, 2, seed)
    given, family = zip(*(name.split() for name in names))
    assert family[0] == family[7]
    assert len(set(given)) == 10 and len(set(family)) == 9
    assert names == staff_names(8, 2, seed) and (seed == 0 or names != staff_names(8, 2, 0))


def test_records_name_the_person_and_the_value() -> None:
    name = staff_names(3)[2]
    records = staff_records(name)
    assert records == staff_records(name) and records[:2] == staff_records(name, 2)
    assert records != staff_records(name, seed=1) and len({record.fact for record in records}) == len(TOPICS)
    for record in records:
        assert name in record.question and name in record.paraphrase and record.question != record.paraphrase
        assert name in record.answer and record.fact in record.answer
        assert name not in record.follow_up and record.fact not in record.question + record.paraphrase + record.follow_up
