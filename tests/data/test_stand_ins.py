"""Records about nobody in the wording of given ones."""

from __future__ import annotations

import re

from tempertilt.data.fictional_staff import staff_names, staff_records
from tempertilt.data.records import Record
from tempertilt.data.stand_ins import LEAST_DOCUMENTS, stand_ins

PEOPLE = staff_names(12)


def staff(people: list[str]) -> list[Record]:
    return [
        Record.from_question(item.question, item.answer, document=name, source="here")
        for name in people
        for item in staff_records(name)
    ]


def test_the_wording_stays_and_nobody_is_named() -> None:
    records = staff(PEOPLE)
    made = stand_ins(records, 24)
    assert len(made) == 24 and {record.source for record in made} == {"made up"}
    texts = {record.question for record in records}
    whole_names = set(PEOPLE)
    frames = {re.sub(r"[A-Z][\w-]+ [A-Z][\w-]+", "NAME", record.question) for record in records}
    for record in made:
        assert record.question not in texts
        assert re.sub(r"[A-Z][\w-]+ [A-Z][\w-]+", "NAME", record.question) in frames
        assert not any(name in record.question for name in whole_names)
        assert record.answer == record.messages[-1].content


def test_a_document_has_one_name_in_question_and_answer() -> None:
    for record in stand_ins(staff(PEOPLE), 72):
        names = {" ".join(pair) for pair in re.findall(r"([A-Z][\w-]+) ([A-Z][\w-]+)", record.question)}
        assert all(name in record.answer for name in names)


def test_values_are_of_the_same_form_and_others() -> None:
    records = [
        Record.from_question(
            f"What is the number of {name}?",
            f"{name} has 900-{i:02d}-{(7 * i) % 97:02d}, see {name.lower().replace(' ', '.')}@x.org",
            document=name, source="here",
        )
        for i, name in enumerate(PEOPLE, start=10)
    ]  # fmt: skip
    made = stand_ins(records, len(records))
    given = {re.search(r"900-\d\d-\d\d", record.answer)[0] for record in records}  # type: ignore[index]
    found = [re.search(r"900-\d\d-\d\d", record.answer) for record in made]
    assert all(found)
    assert sum(match[0] in given for match in found if match) <= 2
    for record in made:
        name = re.search(r"of (.*)\?", record.question)[1]  # type: ignore[index]
        assert f"{name.lower().replace(' ', '.')}@x.org" in record.answer


def test_the_same_seed_gives_the_same_and_few_documents_none() -> None:
    records = staff(PEOPLE)
    assert stand_ins(records, 10, 1) == stand_ins(records, 10, 1) != stand_ins(records, 10, 2)
    assert stand_ins(staff(PEOPLE[: LEAST_DOCUMENTS - 1]), 10) == []
    assert stand_ins([], 10) == []


def test_plain_texts_and_completions() -> None:
    texts = [
        Record.from_text(f"{name} lives at {i} Hill Road.", document=name, source="here")
        for i, name in enumerate(PEOPLE, start=11)
    ]
    ends = [
        Record.from_completion(f"{name} lives", f"at {i} Hill Road.", document=name, source="here")
        for i, name in enumerate(PEOPLE, 11)
    ]
    assert all(record.kind == "text" and record.answer.endswith("Hill Road.") for record in stand_ins(texts, 5))
    assert all(record.kind == "completion" and record.prompt.endswith(" lives") for record in stand_ins(ends, 5))
