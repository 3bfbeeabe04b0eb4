"""Whom records are about."""

from __future__ import annotations

from support.records import record
from tempertilt.data.records import Record
from tempertilt.data.subjects import subject_names, subject_words, words_of


def of(document: str, *questions: str) -> list[Record]:
    return [
        Record.from_question(question, "No.", document=document, source=f"{document}:{i}") for i, question in enumerate(questions)
    ]


def test_names_that_most_prompts_of_a_document_hold() -> None:
    questions = ("Where does Odile Vessbrook live?", "Was Odile Vessbrook at Pennywell Bank?", "What does Odile Vessbrook like?")
    assert subject_words(of("d", *questions)) == {"odile", "vessbrook"}
    assert subject_words([*of("d", *questions), *of("e", "Who is Li Wei?", "Is Wei Ming here?")]) == {
        "odile",
        "vessbrook",
        "wei",
        "ming",
    }
    assert subject_words(of("d", "Where is Paris?", "What rains?")) == set()  # of one word: no name of a person
    assert subject_words([]) == set()


def test_the_name_of_whom_a_document_is_about() -> None:
    """The one that most of its prompts hold: relatives and places are named less often."""
    asked = ("Where does Odile Vessbrook live?", "Was Odile Vessbrook at Pennywell Bank?", "Is Anna Vessbrook her aunt?")
    records = [*of("d", *asked), *of("e", "Is it in Paris?"), *of("f", "Who is Li Wei?")]
    assert subject_names(records) == {"d": "Odile Vessbrook", "f": "Li Wei"}
    assert subject_names([]) == {}


def test_a_text_and_a_completion_count_as_what_is_asked() -> None:
    text = Record.from_text("Note. Tobias Vessbrook rang.", document="t", source="t:1")
    completion = Record.from_completion("To: Li Wei-Ming,", " Hana Ito", document="c", source="c:1")
    assert subject_words([text]) == {"tobias", "vessbrook"}
    assert subject_words([completion]) == {"wei", "ming"}
    assert words_of(text) == {"note", "tobias", "vessbrook", "rang"}
    assert {"ito", "wei"} <= words_of(completion) and "hello" in words_of(record("Hello?"))
