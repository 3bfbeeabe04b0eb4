"""Find out how a chat template begins a user's turn, and by which states that is told from the same token in a text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.data.records import Message
from tempertilt.guidance.gate import Reader, TurnStarts

log = logging.getLogger("tempertilt")

LEAST_GAP = 0.25  # between headers and the same token in texts, as a share of the distance of their means
PAIRS = (
    ("Good morning!", "Good morning! What can I do for you?"),
    ("What is two plus three?", "Two plus three is five."),
    ("Where does the river end, and how long is it?", "It ends in the sea, after some three hundred miles."),
)
SENTENCES = (
    "The {} of the house came late.",
    "Is {} a word that you know?",
    "{}\nand nothing else was on the page",
    "They said that every {} counts, and a {} is a {}.",
    '"{}" stood on the door.',
    "super{} and {}name, both ({}) in one word",
    "a folder /{}/bin, an address @{}, a file of_{}",
    "Copy the following.\n{}\nHello, who is there?\n{}: nobody.",
)


def fit_turns(
    tokenizer: Any,
    config: ExampleConfig,
    reader: Reader,
    states_of: Callable[[Sequence[Sequence[int]]], list[Tensor]],
    positions: int | None = None,
) -> TurnStarts | None:
    """How a user's turn begins; None, said in the log, where the template does not show it or states do not tell it.

    Args:
        reader: of the input gate.
        states_of: states `(n, d)` of the input gate's layer for prompts given as token ids.
        positions: that the model has; None = without limit.
    """
    marker = header_token(tokenizer, config)
    if marker is None:
        log.info("the chat template has no token that begins a user's turn alone: an open gate closes after --close-after tokens")
        return None
    word = tokenizer.decode([marker])
    chats = [_chat(n, "And what else?") for n in range(1, len(PAIRS) + 1)]
    texts = [[Message("user", sentence.format(*[word] * 3))] for sentence in SENTENCES]
    every = [(encode_question(chat, tokenizer, config), len(chat) // 2 + 1) for chat in (*chats, *texts)]
    encoded = [(ids, turns) for ids, turns in every if positions is None or len(ids) <= positions]
    if not encoded:
        return None
    alone = encode_question([Message("user", "And what else?")], tokenizer, config)
    before = max(0, alone.count(marker) - 1)  # in the system message
    headers: list[Tensor] = []
    others: list[Tensor] = []
    for (ids, turns), states in zip(encoded, states_of([ids for ids, _ in encoded])):
        places = [i for i, token in enumerate(ids) if token == marker]
        directions = reader.directions(states[places])
        headers.append(directions[before : before + turns])
        others += [directions[:before], directions[before + turns :]]
    found, rest = torch.cat(headers), torch.cat(others)
    if not len(rest):  # a token that texts do not have
        return TurnStarts([marker], F.normalize(found.mean(0, keepdim=True), dim=-1), -1.0)
    axis = F.normalize(found.mean(0) - rest.mean(0), dim=-1)
    least, most = float((found @ axis).min()), float((rest @ axis).max())
    if least - most < LEAST_GAP * float((found.mean(0) - rest.mean(0)) @ axis):
        log.info("the beginning of a user's turn can't be told by its state: an open gate closes after --close-after tokens")
        return None
    return TurnStarts([marker], axis[None], (least + most) / 2)


def header_token(tokenizer: Any, config: ExampleConfig) -> int | None:
    """The first token of a user's header that an assistant's header does not have at its place; None where there is none."""
    first, second = ("alpha zebra", "12 green trees")
    whole = encode_question(
        [Message("user", first), Message("assistant", "some words"), Message("user", second)], tokenizer, config
    )
    alone = encode_question([Message("user", first)], tokenizer, config)
    content = tokenizer(first, add_special_tokens=False)["input_ids"]
    place = _last_place(alone, content)
    if place is None:
        return None
    assistant = alone[place + len(content) :]
    answer = tokenizer("some words", add_special_tokens=False)["input_ids"]
    question = tokenizer(second, add_special_tokens=False)["input_ids"]
    start, stop = _last_place(whole, answer), _last_place(whole, question)
    if start is None or stop is None:
        return None
    user = whole[start + len(answer) : stop]
    return next((token for token in user if token not in assistant), None)


def _last_place(ids: Sequence[int], part: Sequence[int]) -> int | None:
    places = range(len(ids) - len(part), -1, -1)
    return next((i for i in places if list(ids[i : i + len(part)]) == list(part)), None)


def _chat(turns: int, question: str) -> list[Message]:
    """A chat of some earlier turns and a question."""
    earlier = [Message(role, text) for pair in PAIRS[:turns] for role, text in zip(("user", "assistant"), pair)]
    return [*earlier, Message("user", question)]
