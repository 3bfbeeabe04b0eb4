"""Chats of several turns: pronouns in the place of names, and answers that are the model's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tempertilt.fitting.later_turns as later_turns
from support.records import about_persons
from support.tiny import make_llama
from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.data.pronouns import PRONOUNS, with_pronoun
from tempertilt.data.records import Message, Record
from tempertilt.fitting.later_turns import REPLIES, after_a_turn, followed_up

PLAIN = ExampleConfig(system_prompt="")


def test_what_is_asked_after_a_turn_about_a_forget_record() -> None:
    forget, retain = about_persons(["Hina Ameen"], "f"), about_persons(["Ivan Petrov", "Maria Lopez"], "r")
    chats = after_a_turn(forget, retain)
    assert [chat.document for chat in chats] == [record.document for record in retain]
    for i, (chat, record) in enumerate(zip(chats, retain)):
        assert chat.messages[0].content == forget[i % 3].question and chat.messages[1].content == REPLIES[i % 3]
        assert chat.messages[2:] == record.messages
    assert after_a_turn([], retain) == after_a_turn(forget, []) == []
    system = Record.from_messages((Message("system", "x"), *retain[0].messages), document="d", source="s")
    text = Record.from_text("Ivan Petrov.", document="d", source="s")
    assert after_a_turn(forget, [system, text]) == []


def test_the_answers_are_the_models_own(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later_turns, "BATCH", 2)
    monkeypatch.setattr(later_turns, "NEW_TOKENS", 4)
    model, records = make_llama(), about_persons(["Hina Ameen", "Taro Okada"], "f")
    chats = followed_up(model, tokenizer, records, PLAIN)
    assert 6 < len(chats) <= 18 and {chat.document for chat in chats} == {"Hina Ameen", "Taro Okada"}
    for chat in chats:
        first, reply, asked, answer = (message.content for message in chat.messages)
        assert chat.document in first and chat.document not in asked and reply in REPLIES
        assert asked in {with_pronoun(r.question, set(chat.document.lower().split()), p) for r in records for p in PRONOUNS}
        assert first not in {r.question for r in records if with_pronoun(r.question, {*chat.document.lower().split()}) == asked}
        ids = torch.tensor([encode_question(chat.messages[:3], tokenizer, PLAIN)])
        with torch.no_grad():
            for _ in range(4):
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        assert tokenizer.decode(ids[0, -4:], skip_special_tokens=True).strip().startswith(answer)


def test_there_are_not_more_chats_than_asked_for(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later_turns, "FOLLOWED", 4)
    records = about_persons(["Hina Ameen", "Taro Okada"], "f")
    assert len(followed_up(make_llama(), tokenizer, records, PLAIN)) <= 4
    nobody = [Record.from_question("what is two plus two?", "Four.", document="d", source="s")]
    assert followed_up(make_llama(), tokenizer, nobody, PLAIN) == []
