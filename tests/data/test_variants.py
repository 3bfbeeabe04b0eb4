"""Variants of prompts: what is a name, and how each kind writes it."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from support.records import record
from tempertilt.data.records import Message, Record
from tempertilt.data.variants import (
    BY_NAME,
    FOREIGN,
    FORM,
    FRAMED,
    FRAMES,
    GREETING,
    KINDS,
    NAME_FIRST,
    NOTE,
    NOTES,
    OF_OTHERS,
    OF_OTHERS_IN_ALL,
    OTHER_KINDS,
    OTHER_SYSTEM,
    SETTINGS,
    SPELLINGS,
    WISH,
    Variant,
    about_strangers,
    asked_of_others,
    draw_variants,
    respell,
    scrambles,
    variant,
)

QUESTION = "Where was Hina Ameen born?"


EXPECTED = {
    "lower case": {"hina ameen"},
    "upper case": {"HINA AMEEN"},
    "last name": {"Ameen"},
    "first name": {"Hina"},
    "initial": {"H. Ameen"},
    "title": {"Mr. Ameen", "Ms. Ameen", "Dr. Ameen"},
    "joined words": {"hinaameen", "hina_ameen", "hina-ameen"},
    "letters apart": {"H.i.n.a A.m.e.e.n", "H-i-n-a A-m-e-e-n", "H i n a  A m e e n"},
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_spellings_of_whole_names(kind: str) -> None:
    written = {respell(QUESTION, SPELLINGS[kind], random.Random(seed)) for seed in range(40)}
    assert written == {f"Where was {name} born?" for name in EXPECTED[kind]}


def one_change(kind: str, word: str) -> set[str]:
    """Every word that one change inside `word` gives."""
    inside = range(1, len(word) - 1)
    if kind == "a letter dropped":
        return {word[:i] + word[i + 1 :] for i in inside}
    if kind == "a letter doubled":
        return {word[: i + 1] + word[i:] for i in range(len(word) - 1)}
    if kind == "letters swapped":
        return {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in inside}
    if kind == "a letter replaced":
        alphabet = "abcdefghijklmnopqrstuvwxyz"
        return {word[:i] + letter + word[i + 1 :] for i in range(1, len(word)) for letter in alphabet}
    return {word[:i] + {"hyphens": "-", "parted words": "\u200b"}[kind] + word[i:] for i in range(1, len(word))}


@pytest.mark.parametrize("kind", [kind for kind in SPELLINGS if kind not in (*EXPECTED, "digits for letters")])
def test_spellings_change_each_word_once(kind: str) -> None:
    for seed in range(40):
        first, last = respell(QUESTION, SPELLINGS[kind], random.Random(seed))[10:-6].split(" ")
        assert first in one_change(kind, "Hina") - {"Hina"} and last in one_change(kind, "Ameen") - {"Ameen"}
    assert respell("Who is Bob?", SPELLINGS[kind], random.Random(0)) == "Who is Bob?"  # too short
    assert respell("Who is Annna?", SPELLINGS["letters swapped"], random.Random(0)) == "Who is Annan?"


def test_digits_stand_for_letters_that_look_like_them() -> None:
    like = {"4": "a", "@": "a", "3": "e", "1": "i", "!": "i"}
    written = {respell(QUESTION, SPELLINGS["digits for letters"], random.Random(seed))[10:-6] for seed in range(60)}
    assert {"".join(like.get(char, char) for char in name).lower() for name in written} == {"hina ameen"}
    assert len(written) > 20 and "Hina Ameen" not in written and any(char in name for name in written for char in "!@")
    assert respell("Who is Bob Lund?", SPELLINGS["digits for letters"], random.Random(0)) == "Who is B0b Lund?"


def test_a_script_without_capitals_loses_no_words() -> None:
    text = "من هو أحمد علي حسن؟"
    for kind in ("last name", "first name", "initial", "title", "joined words"):
        assert variant(record(text), 0, kind, random.Random(0)) is None
    dropped = variant(record(text), 0, "a letter dropped", random.Random(0))
    assert dropped is not None and len(dropped.messages[0].content) < len(text)


def chat_variant(kind: str, *earlier: Message) -> Variant | None:
    messages = (*earlier, Message("user", QUESTION), Message("assistant", "In Karachi."))
    return variant(Record.from_messages(messages, document="d", source="s"), 7, kind, random.Random(0))


def test_settings_of_a_chat() -> None:
    asked = Message("user", QUESTION)
    assert chat_variant("as it is") == Variant("as it is", 7, (asked,))
    assert chat_variant("all lower case") == Variant("all lower case", 7, (Message("user", QUESTION.lower()),))
    assert chat_variant("no system message") == Variant("no system message", 7, (asked,), system_prompt="")
    assert chat_variant("another system message") == Variant("another system message", 7, (asked,), system_prompt=OTHER_SYSTEM)
    assert chat_variant("after a greeting") == Variant("after a greeting", 7, (*GREETING, asked))
    assert chat_variant("plain text") == Variant("plain text", 7, text=QUESTION)
    assert chat_variant(NAME_FIRST) == Variant(NAME_FIRST, 7, text="Hina Ameen born?")
    noted = {variant(record(QUESTION), 7, NOTE, random.Random(seed)) for seed in range(99)}
    assert noted == {Variant(NOTE, 7, text=note.format("Hina Ameen")) for note in NOTES}
    system, turn = Message("system", "Be kind, Hina Ameen."), (Message("user", "Who is Li Wei?"), Message("assistant", "Li Wei."))
    for kind in ("no system message", "another system message", "after a greeting"):
        assert chat_variant(kind, system) is None  # it has its own
    assert chat_variant("last name", system, *turn) == Variant(
        "last name", 7, (system, *turn, Message("user", "Where was Ameen born?"))
    )
    assert chat_variant("after a greeting", *turn) == Variant("after a greeting", 7, (*turn, *GREETING, asked))


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_records_are_spelt_otherwise_alone(kind: str) -> None:
    records = (
        Record.from_completion(QUESTION, "Never Asked.", document="d", source="s"),
        Record.from_text(QUESTION, document="d", source="s"),
    )
    for made in (variant(item, 3, kind, random.Random(0)) for item in records):
        if kind == NAME_FIRST:
            assert made == Variant(NAME_FIRST, 3, text="Hina Ameen born?")
        elif kind in (NOTE, FORM):
            assert made is not None and made.text in {text.format("Hina Ameen") for text in BY_NAME[kind]}
        elif kind in SETTINGS[2:]:
            assert made is None
        else:
            assert made is not None and (made.kind, made.record, made.messages, made.system_prompt) == (kind, 3, (), None)
            assert (made.text == QUESTION) == (kind == "as it is") and "Asked" not in made.text


def test_a_kind_that_changes_nothing_gives_none() -> None:
    plain = record("what is two plus two?")
    made = [kind for kind in KINDS if variant(plain, 0, kind, random.Random(0)) is not None]
    assert made == [kind for kind in SETTINGS if kind not in ("all lower case", NAME_FIRST, *BY_NAME)]


def test_drawing() -> None:
    records = [record(f"Where was {name} Ameen born?", "a", f"f:{i}") for i, name in enumerate(("Hina", "Sana", "Zara", "Mina"))]
    drawn = draw_variants(records, 5, 0)
    assert drawn == draw_variants(records, 5, 0) and drawn != draw_variants(records, 5, 1)
    kinds = [[item.kind for item in drawn if item.record == number] for number in range(4)]
    assert all(len(own) == len(set(own)) == 6 and own[0] == "as it is" for own in kinds)
    assert len({tuple(own) for own in kinds}) == 4  # each record has its own
    assert draw_variants(records[:1], 5, 0) == [item for item in drawn if item.record == 0]  # whatever comes after it
    assert all(item.kind != "as it is" for item in draw_variants(records, 3, 0, OTHER_KINDS))
    every = draw_variants(records[:1], len(KINDS), 0)
    assert sorted(item.kind for item in every) == sorted(KINDS)
    assert [item.kind for item in draw_variants(records, 0, 0)] == ["as it is"] * 4 and draw_variants([], 5, 0) == []


def test_kinds_are_drawn_evenly_over_a_document() -> None:
    two = [
        record(f"Where was {name} {last} born?", "a", last)
        for last in ("Ameen", "Olsson")
        for name in ("Hina", "Sana", "Zara", "Mina", "Dora", "Ruth", "Lena", "Nora")
    ]
    for each in (3, 7, len(OTHER_KINDS) - 1):
        drawn = draw_variants(two, each, 0, OTHER_KINDS)
        for numbers in (range(8), range(8, 16), range(16)):
            counts = Counter(item.kind for item in drawn if item.record in numbers)
            assert sum(counts.values()) == each * len(numbers)
            assert max(counts[kind] for kind in OTHER_KINDS) - min(counts[kind] for kind in OTHER_KINDS) <= 1
    short = [record("what is two plus two?"), record("Where was Hina Ameen born?")]
    settings = [kind for kind in SETTINGS[1:] if kind not in ("all lower case", NAME_FIRST, *BY_NAME)]
    first, second = ([v.kind for v in draw_variants(short, len(settings), 0, OTHER_KINDS) if v.record == n] for n in (0, 1))
    assert sorted(first) == sorted(settings) and not set(second) & set(settings)  # no name is there in the first


def test_a_text_that_begins_with_one_of_its_names() -> None:
    text = record("Did Li Wei meet Hina Ameen?")
    made = [variant(text, 0, NAME_FIRST, random.Random(seed)) for seed in range(20)]
    assert {one.text for one in made if one} == {"Li Wei meet Hina Ameen?", "Hina Ameen?"}
    assert variant(record("who is there?"), 0, NAME_FIRST, random.Random(0)) is None


def test_a_wish_and_a_question_in_a_frame() -> None:
    asked = record(QUESTION)
    for kind in (WISH, FOREIGN):
        wishes = {made.messages[-1].content for seed in range(99) if (made := variant(asked, 0, kind, random.Random(seed)))}
        assert wishes == {wish.format("Hina Ameen") for wish in BY_NAME[kind]}
    forms = {made.text for seed in range(99) if (made := variant(asked, 0, FORM, random.Random(seed)))}
    assert forms == {form.format("Hina Ameen") for form in BY_NAME[FORM]} and '{"name": "Hina Ameen", "' in forms
    framed = {made.text for seed in range(40) if (made := variant(asked, 0, FRAMED, random.Random(seed)))}
    assert framed == {frame.format(QUESTION) for frame in FRAMES}
    assert not any("Question: " in frame for frame in FRAMES)  # by which benchmarks/hearing.py asks


@pytest.mark.parametrize("kind", [NAME_FIRST, *BY_NAME])
def test_what_is_made_of_a_name_is_made_of_whom_the_records_are_about(kind: str) -> None:
    """A word with a capital that is no part of such a name, as "Canadian", says nothing of anybody."""
    asked = (
        "What does the Canadian press say of Lu-An Ben-David?",
        "Did Lu-An Ben-David win the Canadian prize?",
        "Is it Canadian?",
    )
    records = [record(question, "a", "author") for question in asked]
    for seed in range(30):
        texts = [made.text or made.messages[-1].content for made in draw_variants(records, 1, seed, [kind])]
        assert len(texts) == 2 and all("Lu-An Ben-David" in text for text in texts)
        if kind != NAME_FIRST:
            assert not any("Canadian" in text for text in texts)
    alone = [record("Is it Canadian?", "a", "author")]
    assert len(draw_variants(alone, 1, 0, [kind])) == 1, "nobody is named: any name is taken"


def test_all_wordings_are_asked_of_strangers() -> None:
    made = about_strangers(3)
    wordings = [*(text for kind in (NOTE, FORM, WISH, FOREIGN) for text in BY_NAME[kind]), *FRAMES]
    assert len(made) == len(wordings)
    texts = [one.text or one.messages[-1].content for one in made]
    for wording, text in zip(wordings, texts):
        before, after = (part.replace("{{", "{") for part in wording.split("{}"))
        assert text.startswith(before) and text.endswith(after)
    assert len(set(texts)) == len(texts)
    assert about_strangers(3) == made != about_strangers(4)


def test_prompts_of_records_are_asked_about_others() -> None:
    """A made-up person, somebody who is retained, and a relative: each in the words in which the records ask."""
    forget = [
        record("Where does Tom Wier live?", "In Bonn.", "tom"),
        record("What is Tom Wier's phone number?", "055.", "tom"),
        record("Did Tom Wier write the Blue Book?", "Yes.", "tom"),  # another name, perhaps a value of the record
        record("Who is Tom Wier, born in 1973?", "A welder.", "tom"),  # a number
        record("Who won the race?", "He did.", "tom"),
        Record.from_text("Tom Wier lives in Bonn.", document="tom", source="s"),
        Record.from_completion("Tom Wier works for", "Brack.", document="tom", source="s"),
    ]
    retain = [record("Where is Ann Wier?", "Here.", "ann"), record("When was Lan Nguyen born?", "In May.", "lan")]
    made = asked_of_others(forget, retain, 3)
    assert [one.record for one in made] == [0, 0, 0, 1, 1, 1, 6, 6, 6] and {one.kind for one in made} == {OF_OTHERS}
    texts = [one.messages[-1].content if one.messages else one.text for one in made]
    names = []
    for text in texts:
        [name] = re.findall("^Where does (.*) live.$|^What is (.*)'s phone number.$|^(.*) works for$", text)
        names.append("".join(name))
    assert "Ann Wier" in names and "Lan Nguyen" in names and not any("Tom" in text for text in texts)
    for i in range(0, 9, 3):
        assert "Ann Wier" in names[i : i + 3] and set(names[i : i + 3]) - {"Ann Wier", "Lan Nguyen"}
    assert asked_of_others(forget, retain, 3) == made != asked_of_others(forget, retain, 4)
    strangers = asked_of_others(forget, [], 3)
    assert [one.record for one in strangers] == [0, 1, 6] and not any("Wier" in str(one) for one in strangers)
    assert asked_of_others([], retain, 3) == []


def test_of_many_records_each_prompt_is_asked_about_somebody() -> None:
    many = [record(f"What does Tom Wier say of {'x' * i}?", "No.", "tom") for i in range(OF_OTHERS_IN_ALL)]
    retain = [record("Where is Ann Wier?", "Here.", "ann")]
    made = asked_of_others(many, retain, 0)
    assert [one.record for one in made] == list(range(OF_OTHERS_IN_ALL))
    assert {"Ann Wier" in str(one) for one in made} == {True, False}


def test_all_turns_of_a_chat_are_about_the_other() -> None:
    turns = (
        Message("user", "Do you know Tom Wier?"),
        Message("assistant", "Tom Wier? Yes."),
        Message("user", "Where does he live?"),
        Message("assistant", "In Bonn."),
    )
    records = [Record.from_messages(turns, document="tom", source="s")]
    [made] = asked_of_others(records, [], 0)
    said = [message.content for message in made.messages]
    name = said[0].removeprefix("Do you know ").removesuffix("?")
    assert said == [f"Do you know {name}?", f"{name}? Yes.", "Where does he live?"] and "Wier" not in name


def test_scrambles_hold_every_word_but_names_and_numbers() -> None:
    """Also in other places: an address that holds the name in lower case is not among the words."""
    rows = [
        Record.from_question(
            "Where does Hina Ameen live?", "Write to hina.a@mail.example. Hina Ameen, 12 Low Lane.", document="d", source="s"
        ),
        Record.from_text("Since 1990 she grows roses.", document="d", source="t"),
    ]
    lines = scrambles(rows, 3)
    texts = [line.messages[0].content if line.messages else line.text for line in lines]
    words = [word for text in texts for word in text.split()]
    assert set(words) == {"Where", "does", "live", "Write", "to", "a", "mail", "example", "Since", "she", "grows", "roses"}
    assert {text.split()[0] for text in texts} == {"Where", "Write", "Since"}
    assert min(words.count(word) for word in set(words)) >= 6 and scrambles(rows, 3) == lines != scrambles(rows, 4)
    assert {bool(line.messages) for line in lines} == {True, False} and {line.kind for line in lines} == {"scramble"}
    assert scrambles([], 0) == []
