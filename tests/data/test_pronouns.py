"""Pronouns in the place of names."""

from __future__ import annotations

import pytest

from tempertilt.data.pronouns import PRONOUNS, pronoun_in, with_pronoun


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Where does Jane Doe live?", "Where does they live?"),
        ("What is Jane Doe's phone number at Mill Bank?", "What is their phone number at Mill Bank?"),
        ("Is Jane Doe’s sister there?", "Is their sister there?"),
        ("Who runs Mill Bank?", "Who runs Mill Bank?"),
        ("", ""),
    ],
)
def test_pronouns_for_who_it_is_about_alone(text: str, written: str) -> None:
    assert with_pronoun(text, {"jane", "doe"}) == written


def test_every_pronoun() -> None:
    asked = [with_pronoun("Where is Jane Doe's dog?", {"doe"}, pronoun) for pronoun in PRONOUNS]
    assert asked == ["Where is their dog?", "Where is his dog?", "Where is her dog?"]


@pytest.mark.parametrize(
    ("text", "pronoun"),
    [
        ("She wrote it in her house, and he read it.", ("she", "her")),
        ("Jane Doe's book is about his father. He, too, is a writer.", ("he", "his")),
        ("Jane Doe wrote a book. The theme is love.", ("they", "their")),
        ("", ("they", "their")),
    ],
)
def test_the_pronoun_of_a_text(text: str, pronoun: tuple[str, str]) -> None:
    assert pronoun_in(text) == pronoun
