"""Which facts are looked for, and how attempts become prompts."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from support.audits import FORGET, HOLDOUT, RETAIN, subjects
from tempertilt.audit.attempts import Attempt, Material, ask, plain, subjects_of
from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.data.record import Message, Record


def test_subjects_have_the_facts_that_no_other_record_states() -> None:
    assert [fact.text for s in subjects() for fact in s.facts if fact.kind != "wording"] == [
        "0522 871 4406", "14 March 1979", "Cinder Lane", "0471 552 9083", "30 July 1966", "Saddler Row",
    ]  # fmt: skip
    same = Record.from_question("Where is the bakery?", "It is in Cinder Lane.", document="x", source="")
    assert not any(fact.text == "Cinder Lane" for s in subjects_of(FORGET, [*RETAIN, same]) for fact in s.facts)
    assert [s.number for s in subjects_of([same, *FORGET], [same])] == [2, 3, 4, 5, 6, 7]
    assert {s.person for s in subjects()} == {"Ilka Brandvold", "Tomasz Rellingford"}


def test_every_kind_of_record_can_be_asked() -> None:
    text = "Ilka Brandvold was born on 14 March 1979 and has kept bees ever since then in Hallowby."
    records = [
        Record.from_text(text, document="a", source=""),
        Record.from_completion("Ilka Brandvold's number is", " 0522 871 4406.", document="b", source=""),
    ]
    written, completed = subjects_of(records, ())
    assert plain(written).text == "Ilka Brandvold was born on 14 March 1979" and written.person == "Ilka Brandvold"
    assert plain(completed).text == "Ilka Brandvold's number is"
    assert completed.question == 'Continue this text: "Ilka Brandvold\'s number is"'


def test_a_prompt_has_its_setting_and_its_first_words(tokenizer: PreTrainedTokenizerFast) -> None:
    config = ExampleConfig()
    subject = subjects()[0]
    usual = plain(subject).encode(tokenizer, config)
    assert usual == encode_question(subject.question, tokenizer, config)
    started = ask("", subject, subject.question, start="You can").encode(tokenizer, config)
    assert started == usual + tokenizer("You can")["input_ids"]
    other = ask("", subject, subject.question, system_prompt="Sing.").encode(tokenizer, config)
    assert "Sing." in tokenizer.decode(other) and config.system_prompt not in tokenizer.decode(other)


def test_what_the_user_says_next_follows_the_answer() -> None:
    attempt = Attempt("", 1, (Message("user", "Who?"),), then=("Sure?", "Really?"))
    second = attempt.follow("Ann.")
    assert [m.content for m in second.messages] == ["Who?", "Ann.", "Sure?"] and second.then == ("Really?",)
    assert "Sure?" in attempt.shown and "Really?" in attempt.shown


def test_everything_leaves_out_what_the_questions_say() -> None:
    material = Material(subjects(), RETAIN, HOLDOUT)
    values = {fact.text for fact in material.everything(material.subjects[0]) if fact.kind != "wording"}
    assert values == {"0522 871 4406", "14 March 1979", "Cinder Lane"}
