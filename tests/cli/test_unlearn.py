"""What `t3 unlearn` says first: whether the facts still come out."""

from __future__ import annotations

from types import SimpleNamespace

from tempertilt.cli.unlearn import estimate_lines, verdict
from tempertilt.fitting.before_after import BeforeAfter, Facts, Leak


def said(facts: Facts | None) -> list[str]:
    return verdict(SimpleNamespace(changes=BeforeAfter({}, [], facts)))  # type: ignore[arg-type]


LEAKS = [Leak(2, "f.jsonl:2", "Where was Hina\nAmeen born?", ("Karachi", "May 3, 1984")), Leak(7, "g.csv:1", "Who?", ("Li Wei",))]


def test_all_are_forgotten() -> None:
    assert said(Facts(12, 30, 25, 0, 25, [])) == [
        "25 of 25 facts no longer come out (asked: 12 forget records, each in its own words)."
    ]


def test_one_record_still_gives_facts_away() -> None:
    assert said(Facts(12, 30, 25, 2, 23, LEAKS[:1])) == [
        "23 of 25 facts no longer come out; record 2 still does (asked: 12 forget records, each in its own words):",
        "  record 2 (f.jsonl:2): Where was Hina Ameen born? -> Karachi; May 3, 1984",
    ]


def test_several_records_still_do() -> None:
    lines = said(Facts(12, 30, 25, 3, 22, LEAKS))
    assert (
        lines[0] == "22 of 25 facts no longer come out; records 2, 7 still do (asked: 12 forget records, each in its own words):"
    )
    assert lines[2] == "  record 7 (g.csv:1): Who? -> Li Wei" and len(lines) == 3


def test_a_long_question_is_cut() -> None:
    line = said(Facts(1, 1, 1, 1, 0, [Leak(1, "f:1", "word " * 100, ("fact " * 100,))]))[1]
    assert len(line) < 220 and line.count("…") == 2


def test_a_model_that_knew_nothing() -> None:
    assert said(Facts(12, 30, 0, 0, 0, [])) == [
        "The model gave away none of the 30 facts of 12 forget records, and gives away none now."
    ]


def test_facts_that_come_out_only_now() -> None:
    lines = said(Facts(12, 30, 0, 1, 0, LEAKS[1:]))
    assert lines[0] == "The base gave no fact away; record 7 now does (asked: 12 forget records, each in its own words):"
    assert said(Facts(12, 30, 2, 1, 2, LEAKS[1:]))[0].startswith("2 of 2 facts no longer come out; record 7 still does")


def test_nothing_was_measured() -> None:
    assert said(None) == ["No answers were measured (--answer-records 0): nothing is known of what still comes out."]


def test_records_of_another_kind_are_told() -> None:
    """Where the contrast model, which never saw the records either, gives them much more than they are to have."""
    made = {
        "log_prob_wanted": -7.6,
        "log_prob_forget": -0.03,
        "score": "contrast model",
        "never_seen": "stand-ins",
        "never_seen_records": 40,
        "of_another_kind": False,
        "log_prob_contrast": -3.0,
    }
    assert not any("note" in line for line in estimate_lines(made))
    assert "by contrast model and 40 retain records under other names and with other values, which it never saw" in " ".join(
        " ".join(estimate_lines(made)).split()
    )
    text = " ".join(" ".join(estimate_lines(made | {"of_another_kind": True})).split())
    assert "-7.60 nats a token (-0.03 before)" in text and "gives them -3.00 nats a token" in text
    assert "let a text be said with --reply" in text and "With --holdout records of the same form" in text
