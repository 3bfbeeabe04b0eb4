"""What is written like a name: texts by hand."""

from __future__ import annotations

import pytest

from tempertilt.data.names import names


def found(text: str) -> list[str]:
    return [text[start:stop] for start, stop in names(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Where was Hina Ameen born?", ["Hina Ameen"]),
        ("Who is Zoë Ångström-Li's teacher?", ["Zoë Ångström-Li"]),
        ("Who is Zoe\u0308 Li?", ["Zoe\u0308 Li"]),
        ("What did Dr. Ali O'Brien, of Paris, say?", ["Dr. Ali O'Brien", "Paris"]),
        ("Hina is here. Ameen too. Is Li Wei?", ["Li Wei"]),  # a single word that begins a sentence; "Is" is no name
        ("In Paris and (Berlin) I met Bo.", ["Paris", "Berlin"]),  # the last two are too short
        ("Кто такая Анна Каренина?", ["Анна Каренина"]),
        ("what is it", []),
        ("", []),
    ],
)
def test_names(text: str, expected: list[str]) -> None:
    assert found(text) == expected


def test_letters_with_marks_are_one_word() -> None:
    text = "हिन्दी लेखक प्रेमचन्द"
    assert found(f"1. {text}?") == [text]


def test_a_full_stop_ends_a_name_unless_it_is_of_a_title_or_an_initial() -> None:
    assert found("Staff file, Orrin Instruments. Odile Vessbrook, lens grinder") == ["Orrin Instruments", "Odile Vessbrook"]
    assert found("We met Dr. Li Wei and Prof. Ana Ruiz, J. R. Tolkien and J.K. Rowling.") == [
        "Dr. Li Wei",
        "Prof. Ana Ruiz",
        "J. R. Tolkien",
        "J.K. Rowling",
    ]
