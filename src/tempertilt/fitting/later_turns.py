"""Chats of several turns, of which the gates learn what a later turn is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tempertilt.data.batches import spread
from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.data.pronouns import PRONOUNS, with_pronoun
from tempertilt.data.records import Message, Record
from tempertilt.data.subjects import subject_words
from tempertilt.errors import DataError
from tempertilt.models.generation import generate_ids
from tempertilt.models.limits import room

AFTER_TURN = 48  # retain records that are answered after a turn about the forget records
FOLLOWED = 24  # chats of each set that ask with a pronoun, after a turn about the same document: of few records several of each
NEW_TOKENS = 24  # of the model's answer then
BATCH = 16  # chats that are answered at a time
REPLIES = ("I have no information about that.", "That is all that I can say.", "Sure, what would you like to know?")


def after_a_turn(forget: Sequence[Record], retain: Sequence[Record]) -> list[Record]:
    """Retain records that are asked after a turn about a forget record: what must be left alone in a later turn."""
    asked = [record.question for record in spread(list(forget), AFTER_TURN) if record.kind == "chat"]
    chats = []
    for i, record in enumerate(spread(list(retain), AFTER_TURN) if asked else []):
        if _is_plain_chat(record):
            history = (Message("user", asked[i % len(asked)]), Message("assistant", REPLIES[i % len(REPLIES)]))
            chats.append(Record.from_messages((*history, *record.messages), document=record.document, source=record.source))
    return chats


def followed_up(model: Any, tokenizer: Any, records: Sequence[Record], config: ExampleConfig) -> list[Record]:
    """Chats that ask about a record with a pronoun, after a turn about the same document, with the model's own answers.

    In a later turn a name need not be said, neither in the question nor in the answer. So what the model is about to say then is
    another state than before the record's own answer.
    """
    some = [record for record in spread(list(records), FOLLOWED) if _is_plain_chat(record)]
    words = subject_words(records)
    chats: list[tuple[Record, tuple[Message, ...]]] = []
    for turn, pronoun in enumerate(PRONOUNS):
        for i, record in enumerate(some[: FOLLOWED - len(chats)]):
            question = with_pronoun(record.question, words, pronoun)
            if question != record.question:
                first, reply = _another(some, i, turn).question, REPLIES[(i + turn) % len(REPLIES)]
                chats.append((record, (Message("user", first), Message("assistant", reply), Message("user", question))))
    out: list[Record] = []
    for start in range(0, len(chats), BATCH):
        out += _answered(model, tokenizer, chats[start : start + BATCH], config)
    return out


def _is_plain_chat(record: Record) -> bool:
    return record.kind == "chat" and not any(message.role == "system" for message in record.messages)


def _another(records: Sequence[Record], number: int, turn: int) -> Record:
    """Another record of the same document, in turn; itself if there is none."""
    document = records[number].document
    others = [record for record in (*records[number + 1 :], *records[:number]) if record.document == document]
    return others[turn % len(others)] if others else records[number]


def _answered(
    model: Any, tokenizer: Any, chats: Sequence[tuple[Record, tuple[Message, ...]]], config: ExampleConfig
) -> list[Record]:
    """Records of the chats with the model's greedy answers, where the template allows them and it says something."""
    encoded = []
    for record, history in chats:
        try:
            ids = encode_question(history, tokenizer, config)
        except DataError:  # a template that refuses several turns
            continue
        if room(model, len(ids)) != 0:
            encoded.append((record, history, ids))
    if not encoded:
        return []
    rows = generate_ids(model, tokenizer, [ids for _, _, ids in encoded], max_new_tokens=NEW_TOKENS)
    answers = [tokenizer.decode(row[0], skip_special_tokens=True).strip() for row in rows]
    return [
        Record.from_messages((*history, Message("assistant", answer)), document=record.document, source=record.source)
        for (record, history, _), answer in zip(encoded, answers)
        if answer
    ]
