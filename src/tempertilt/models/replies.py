"""The reply of an adapter in the tokens of its base model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from tempertilt.config.options import Options, option
from tempertilt.data.control_tokens import ControlTokens
from tempertilt.data.examples import ExampleConfig, answer_ids, build_examples, encode_question, turn_end_id
from tempertilt.data.records import Record
from tempertilt.errors import ConfigError
from tempertilt.guidance.reply import Reply

GUESS = "guess"
HELP = "what is said where a gate is open: guess (drawn from the tilted distribution), or a text, which ends the answer"
BREAK = "... "  # between a sentence that is not finished and the reply
LONGEST = 256  # tokens
QUESTIONS = ("alpha zebra", "12 green trees")  # with nothing in common at their ends


@dataclass(frozen=True)
class ReplyConfig(Options):
    """What is said instead."""

    reply: str = option(GUESS, HELP)


def make_reply(text: str, tokenizer: Any, config: ExampleConfig | None = None) -> Reply | None:
    """What `--reply` asks for: None for "guess", else the text as an answer of a chat, and as what breaks off a sentence.

    Args:
        text: as it was given.
        tokenizer: of the base model.
        config: how chats become tokens.

    Raises:
        ConfigError: the text is empty or too long, or the tokenizer has no token that ends an answer.
    """
    text = text.strip()
    if text == GUESS:
        return None
    if not text:
        raise ConfigError(f"reply is empty; must be {GUESS}, or a text")
    config = config or ExampleConfig()
    end = turn_end_id(tokenizer, config)
    if end is None:
        raise ConfigError(
            f"the tokenizer has no token that ends an answer, and so none that ends a reply; must be --reply {GUESS}"
        )
    record = Record.from_question(QUESTIONS[0], text, document="", source="the reply")
    answer = answer_ids(build_examples([record], tokenizer, config)[0]).tolist()
    control = ControlTokens(tokenizer)
    tail = [*control.encode(control.mask(BREAK + text), add_special_tokens=False), end]
    if max(len(answer), len(tail)) > LONGEST:
        raise ConfigError(f"reply has {len(tail)} tokens; must be at most {LONGEST}")
    return Reply(text, _header(tokenizer, config), answer, tail)


def _header(tokenizer: Any, config: ExampleConfig) -> list[int]:
    """The tokens between a question and its answer."""
    prompts = [encode_question(question, tokenizer, config)[::-1] for question in QUESTIONS]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*prompts))
    return [token for token, _ in same][::-1]
