"""Facts of records and texts that give them away: values written by hand in many forms."""

from __future__ import annotations

import pytest

from support.records import record
from tempertilt.data.facts import facts_of, given_away, normalise, recall
from tempertilt.data.records import Record

DATES = (
    "3 May 1984", "03 May 1984", "3rd May 1984", "3rd of May, 1984", "May 3, 1984", "may 3rd 1984", "1984-05-03", "1984/5/3",
    "3.5.1984", "03/05/1984", "05/03/1984", "3-May-1984", "1984年5月3日",
)  # fmt: skip


def kinds(answer: str, question: str = "Who is it?") -> list[tuple[str, str]]:
    return [(fact.kind, fact.text) for fact in facts_of(record(question, answer))]


def leaks(answer: str, text: str) -> bool:
    """Whether a text gives away the one fact of an answer."""
    facts = facts_of(record("Who is it?", answer))
    assert len(facts) == 1
    return given_away(facts, text) == facts


@pytest.mark.parametrize("written", DATES)
def test_a_date_is_told_however_it_is_written(written: str) -> None:
    assert [kind for kind, _ in kinds(f"She was born on {written}.")] == ["date"]
    for other in DATES:
        assert leaks(f"She was born on {written}.", f"That was {other}, they say.")


@pytest.mark.parametrize("other", ["13 May 1984", "3 May 1985", "3 June 1984", "May 30, 1984", "1984-05-31", "3 May", "in 1984"])
def test_another_date_is_none(other: str) -> None:
    assert not leaks("She was born on May 3, 1984.", f"She was born on {other}.")


@pytest.mark.parametrize("month", ["September", "Sept.", "Sep", "sept"])
def test_short_names_of_months(month: str) -> None:
    assert leaks(f"She left on 3 {month} 1984.", "1984-09-03") and leaks(f"She left on {month} 3, 1984.", "9/3/1984")


@pytest.mark.parametrize("answer", ["He was born in May 1984.", "He was born in Sept 1984."])
def test_a_month_is_no_name(answer: str) -> None:
    assert kinds(answer) == [("number", "1984")]


@pytest.mark.parametrize(
    "written",
    ["+44 20 7946 0958", "+442079460958", "0044 20 7946 0958", "020 7946 0958", "020-7946-0958", "(020) 7946 0958"],
)  # fmt: skip
@pytest.mark.parametrize("fact", ["+44 20 7946 0958", "020 7946 0958"])
def test_a_phone_number_with_and_without_the_code_of_its_country(fact: str, written: str) -> None:
    assert leaks(f"The number is {fact}.", f"You can call {written} at 9, room 12.")


@pytest.mark.parametrize("other", ["020 7946 0959", "+44 20 7946 09581", "7946", "0958 7946 020", "20 79 46 09"])
def test_another_phone_number_is_none(other: str) -> None:
    assert not leaks("The number is +44 20 7946 0958.", f"You can call {other}.")


def test_a_phone_number_beside_other_numbers() -> None:
    assert leaks("The number is 555 010 2345.", "In 2019 12 people called 555 010 2345 3 times.")
    assert kinds("She is 41, the number is +1 (555) 010-2345. 12 people have it.") == [
        ("number", "41"),
        ("number", "+1 (555) 010-2345"),
        ("number", "12"),
    ]


@pytest.mark.parametrize("other", ["112 cats", "12,500 cats", "3.12 cats", "12.5 cats", "the 120th", "A0120"])
def test_a_number_within_another_is_none(other: str) -> None:
    assert leaks("She has 12 cats.", "of cats, 12") and not leaks("She has 12 cats.", other)


def test_numbers_in_other_forms() -> None:
    assert leaks("It cost $1,250,000.", "1250000 dollars") and leaks("It cost 1250000.", "1.250.000, that is all")
    assert kinds("She taught from 1990-1995.") == [("number", "1990"), ("number", "1995")]
    assert kinds("They sold (1984) 7 houses.") == [("number", "1984")]  # one digit says nothing
    assert kinds("In 2019 12 people came.") == [("number", "2019"), ("number", "12")]


@pytest.mark.parametrize("other", ["175 people", "1.7 m", "17.5 m", "1 m 75", "1.750 m", "11.75 m", "1.755 m"])
def test_a_short_number_keeps_its_decimal_point(other: str) -> None:
    for same in ("(1.75 m)", "1,75 m", "1.75m"):
        assert leaks("She is 1.75 m tall.", same) and leaks("She is 1,75 m tall.", same)
    assert not leaks("She is 1.75 m tall.", other) and not leaks("She saw 175 of them.", "1.75 m")


@pytest.mark.parametrize("written", ["12,500", "12.500", "12500"])
def test_groups_of_three_digits_are_one_number(written: str) -> None:
    for other in ("12,500", "12.500", "12500"):
        assert leaks(f"It cost {written} dollars.", f"That is {other}, they say.")
    assert leaks("It cost 1,250.75 dollars.", "1250,75") and not leaks("It cost 1,250.75 dollars.", "125075")
    assert not leaks(f"It cost {written} dollars.", "12.50 dollars")


@pytest.mark.parametrize("date", ["1984-05-03", "1984/5/3", "3.5.1984", "03/05/1984", "1984年5月3日", "3-May-1984"])
def test_a_date_gives_its_year_away(date: str) -> None:
    assert leaks("She was born in 1984.", f"It was on {date}.") and not leaks("She was born in 1985.", f"It was on {date}.")
    assert kinds("It was in 1984.", f"Was she born on {date}?")[0][0] == "wording"


def test_an_address() -> None:
    assert kinds("Write to zoe.li@example.org.") == [("address", "zoe.li@example.org")]
    assert leaks("Write to zoe.li@example.org.", "Her mail: ZOE.LI@Example.org!")
    assert not leaks("Write to zoe.li@example.org.", "zoe@example.org, li@example.org")
    assert leaks("See https://example.org/zoe.", "the page https://example.org/zoe is hers")


@pytest.mark.parametrize("quoted", ['"The River\'s End"', "“The River’s End”", "«The River's End»"])
def test_a_title(quoted: str) -> None:
    assert kinds(f"She wrote {quoted}, a book.")[0][0] == "title"
    assert leaks(f"She wrote {quoted}.", "the river’s end is her book") and not leaks(f"She wrote {quoted}.", "the river ends")


def test_apostrophes_are_no_quotes() -> None:
    assert kinds("It's the dogs' house and the cats' house.")[0][0] == "wording"
    assert kinds("She wrote 'Night Train' then.") == [("title", "Night Train")]


def test_names_without_accents_case_or_invisible_characters() -> None:
    assert kinds("It is Zoë Ångström-Li who came.") == [("name", "Zoë Ångström-Li")]
    for text in ("zoe angstrom li", "ZOË ÅNGSTRÖM-LI", "Zo\u200be Ångström-Li's", "Zoe\u0308 A\u030angstro\u0308m Li"):
        assert leaks("It is Zoë Ångström-Li who came.", text)
    assert not leaks("It is Zoë Ångström-Li who came.", "Zoë Ångström") and not leaks("It is Zoë Li who came.", "Zoë Lind")
    assert normalise("  Ça, l’été_\u200b’84! ") == "ca l ete 84"


def test_what_the_question_holds_is_no_fact() -> None:
    assert kinds("Hina Ameen was born in Karachi on May 3, 1984.", "Was Hina Ameen born on 3 May 1984?") == [("name", "Karachi")]
    assert kinds("It is 41, in Karachi.", "Who is 41 in karachi?")[0][0] == "wording"
    assert kinds("It is Karachi and Karachi.") == [("name", "Karachi")]  # each once
    text = Record.from_text("It was Hina Ameen.", document="d", source="s")  # its beginning is no question
    assert [fact.text for fact in facts_of(text)] == ["Hina Ameen"]


def test_wording_counts_by_the_longest_common_subsequence() -> None:
    answer = "she likes to walk by the sea with her dogs"
    assert leaks(answer, "Yes: she really likes to walk by the sea, with dogs.")  # 9 of 10
    assert not leaks(answer, "she likes to walk by the river with cats")  # 7 of 10
    assert not leaks(answer, "dogs her with sea the by walk to likes she")
    assert recall(["a", "b", "c", "d"], ["x", "b", "d", "a", "c", "d"]) == 0.75  # b c d
    assert recall(["a", "b"], []) == 0.0 and recall([], ["a"]) == 0.0


def test_scripts_without_spaces_or_capitals_count_by_their_wording() -> None:
    answer = "李小龙出生在美国的旧金山"
    assert kinds(answer) == [("wording", answer)]
    assert leaks(answer, "据说，李小龙出生在美国旧金山。") and not leaks(answer, "李小龙住在香港。")
    assert normalise("李小龙 A1") == "李 小 龙 a1"
    answer = "ولد أحمد علي حسن في مدينة القاهرة الكبيرة"
    assert kinds(answer) == [("wording", answer)]
    assert leaks(answer, "ولد أحمد علي حسن في مدينة القاهرة.") and not leaks(answer, "ولد في مدينة دمشق")


@pytest.mark.parametrize("text", ["4350", "4,350.00 euros", "4.350,00 euros"])
def test_zeros_behind_the_decimal_point_change_nothing(text: str) -> None:
    assert leaks("She earns 4,350 euros.", text) and leaks(text, "She earns 4,350 euros.")
    assert not leaks("She earns 4,350.50 euros.", text)
    for one, other in (("10.5", "10.50"), ("10,50", "10.5")):
        assert leaks(f"It costs {one} euros.", f"{other} euros") and not leaks(f"It costs {one} euros.", "10.05 euros")


def test_only_what_a_text_gives_away_is_counted() -> None:
    facts = facts_of(record("Who is it?", "She is Hina Ameen, born on May 3, 1984, in Karachi."))
    assert {fact.text for fact in given_away(facts, "Born in Karachi in 1984, as Hina.")} == {"Karachi"}
    assert given_away(facts, "") == []
