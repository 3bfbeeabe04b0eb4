"""The demonstration's data and flow, on the tiny model; tests/integration runs it on the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tempertilt.cli.demonstration as demo
from tempertilt.cli import main
from tempertilt.config.keys import PROTOCOLS
from tempertilt.data.records import Message, Record
from tempertilt.errors import ConfigError
from tempertilt.models.base import load_base


def test_parts_do_not_overlap_and_only_the_last_person_is_forgotten() -> None:
    data = demo.demo_data(demo.DemoConfig(people=5, questions=3))
    assert len(data.forget) == 3 and len(data.retain) == 12 and len(data.strangers) == 6
    (person,) = {record.name for record in data.forget}
    others = [record.name for record in data.retain]
    assert len(set(others)) == 4 and person not in others
    assert others[0].split()[1] == person.split()[1] and others[0] != person  # the namesake
    assert not {record.name for record in data.strangers} & {person, *others}
    assert not {record.key for record in data.common} & {record.key for record in data.unrelated}
    with pytest.raises(ConfigError, match="people is 2; must be a whole number >= 3"):
        demo.DemoConfig(people=2)


def test_every_form_asks_for_the_same_person() -> None:
    record = demo.demo_data(demo.DemoConfig()).forget[0]
    chats = {name: form(record) for name, form in demo.FORMS.items()}
    assert chats["as in the records"] == (Message("user", record.question),)
    assert chats["in lower case"][0].content == record.question.lower() != record.question
    assert record.name in chats["in other words"][0].content != record.question
    first, _, last = chats["in a second turn"]
    assert record.name in first.content and record.name not in last.content


@pytest.mark.parametrize(
    "said, right",
    [("The capital of France is PARIS!", True), ("Paris is the capital of France.", True), ("It is Paris.", False), ("", False)],
)
def test_right_is_an_answer_with_all_words_of_the_true_one(said: str, right: bool) -> None:
    record = Record.from_question("What is the capital of France?", "The capital of France is Paris.", document="d", source="s")
    assert demo._is_right(said, record) == right


def test_a_form_counts_any_fact_of_the_person_and_shows_the_first_that_was_told() -> None:
    one, two, three = chats = [demo._chat(text) for text in "abc"]
    before = {one: "nothing", two: "At 4 Elm Row.", three: "on 3 may"}
    after = {one: "3 May, I think", two: "At 5 Elm Row.", three: "?"}
    form = demo._form("x", chats, before, after, ["4 Elm Row", "3 May"])
    assert form == ("x", 3, 2, 1, ("b", "At 4 Elm Row.", "At 5 Elm Row."))
    assert demo._form("x", chats, after, after, ["9 Oak Way"]) == ("x", 3, 0, 0, ("a", "3 May, I think", "3 May, I think"))


@pytest.mark.integration
def test_the_flow_and_its_cache(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "load_base", lambda _alias, **options: load_base(str(tiny_dir), **options))
    taught: list[int] = []
    original = demo.finetune
    monkeypatch.setattr(demo, "finetune", lambda *args, **kwargs: (taught.append(1), original(*args, **kwargs))[1])
    arguments = ["demo", "--people", "3", "--questions", "2", "--json", "--quiet"]
    reports: list[dict[str, Any]] = []
    for _ in range(2):
        assert main(arguments) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert taught == [1]
    assert all(reports[0][name] == reports[1][name] for name in ("person", "forgotten", "kept", "adapter"))
    assert [form["name"] for form in reports[0]["forgotten"]] == [*demo.FORMS, demo.WITH_REPLY]
    assert [form["n"] for form in reports[0]["forgotten"]] == [2] * 5
    assert [kept["n"] for kept in reports[0]["kept"]] == [2, 2, 12]
    assert set(reports[0]["seconds"]) == {"load", "teach", "unlearn", "ask"}
    monkeypatch.setitem(PROTOCOLS, "estimate", PROTOCOLS["estimate"] + 1)  # another adapter beside the one that is there
    assert main([*arguments[:-2], "--quiet"]) == 0
    out = capsys.readouterr().out
    assert f"{reports[0]['person']} asks to be forgotten" in out and "16 of 16 other answers are unchanged" in out
