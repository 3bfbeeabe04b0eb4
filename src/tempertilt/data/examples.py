"""Examples: the tokens of records, and which of them are scored.

A token at position i is scored by the logits at position i - 1, so the first token of a sequence is never scored. What
is scored: every assistant turn of a chat and the token that ends it, a completion and its eos, or all of a text. The
tokens before the last answer are exactly those that generation is given (`encode_prompt`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from tempertilt.config.options import Options, option
from tempertilt.data.control_tokens import ControlTokens
from tempertilt.data.record import Message, Record, Role, shorten
from tempertilt.data.templates import TODAY, has_template, render_chat
from tempertilt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("tempertilt")

TEXT_PROMPT_LENGTH = 32
"""The prompt of a text record is at most this many of its tokens."""


@dataclass(frozen=True)
class ExampleConfig(Options):
    """How records become examples."""

    system_prompt: str = option(
        "You are a helpful assistant.", "system message put before chats that have none; empty leaves it to the chat template"
    )
    max_length: int = option(
        1024, "tokens in an example; longer records are cut into overlapping windows, nothing is lost", ge=2, advanced=True
    )
    overlap: int = option(
        256, "tokens of context that each later window repeats (at least one is), not scored again", ge=0, advanced=True
    )
    template_date: str = option(
        "2026-01-01",
        f"the day that chat templates with a date write, so that records give the same tokens on every day; or {TODAY}",
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap >= self.max_length:
            raise ConfigError(f"overlap is {self.overlap}; must be < max_length, which is {self.max_length}")
        if self.template_date != TODAY and not _is_day(self.template_date):
            raise ConfigError(f"template_date is {self.template_date!r}; must be a day as 2026-01-31, or {TODAY}")

    @classmethod
    def for_chats(cls, *system_prompts: str | None) -> ExampleConfig:
        """For live chats: the day is today, the system prompt the first one that is given, or the default."""
        given = next((prompt for prompt in system_prompts if prompt is not None), None)
        return cls(template_date=TODAY) if given is None else cls(template_date=TODAY, system_prompt=given)


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence of tokens: a record, or a window of one.

    Attributes:
        input_ids: `(T,)` int32.
        scored: `(T,)` bool, True at the tokens that are targets; never at the first.
        document: the record's document, the unit that splits never cut.
        source: where the record was read.
        record_index: the record's place in the list that was given.
    """

    input_ids: NDArray[np.int32]
    scored: NDArray[np.bool_]
    document: str
    source: str
    record_index: int

    @property
    def first_scored(self) -> int:
        """Place of the first scored token: before it stands the prompt."""
        return int(self.scored.argmax())

    @property
    def n_scored(self) -> int:
        """The number of scored tokens."""
        return int(self.scored.sum())

    def __len__(self) -> int:
        return len(self.input_ids)


def build_examples(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, config: ExampleConfig) -> list[Example]:
    """Tokenise records.

    Chats are rendered with the tokenizer's chat template, or as "Question: …" and "Answer: …" if it has none. A
    sequence ends with the token that ends the answer's turn. Records longer than `max_length` become several windows,
    in which every scored token is scored exactly once.

    Returns:
        At least one example per record, in the order of the records.

    Raises:
        DataError: an answer has no token that can be scored, or the chat template refuses or does not show it.
    """
    encoder = _Encoder(tokenizer, config)
    if any(record.kind == "chat" for record in records):
        encoder.log_format()
    examples: list[Example] = []
    n_long = 0
    for index, record in enumerate(records):
        input_ids, scored = encoder.encode(record)
        n_long += len(input_ids) > config.max_length
        for start, stop in _windows(len(input_ids), config):
            window = scored[start:stop].copy()
            window[: _overlap(config) if start else 1] = False
            if window.any():
                examples.append(Example(input_ids[start:stop], window, record.document, record.source, index))
    if n_long:
        message = "%d of %d records are longer than max_length=%d and were cut into windows with overlap=%d"
        logger.info(message, n_long, len(records), config.max_length, _overlap(config))
    if n_plain := sum(encoder.spells_control_tokens(record) for record in records):
        message = "%d records of plain text spell control tokens of the tokenizer, which stay text; give chats as messages"
        logger.warning(message, n_plain)
    if encoder.n_last_only:
        message = "%d chats are scored in their last turn only: the chat template rewrites earlier turns"
        logger.info(message, encoder.n_last_only)
    return examples


def encode_prompt(record: Record, tokenizer: PreTrainedTokenizerBase, config: ExampleConfig) -> list[int]:
    """Return the ids from which to generate a record's answer: exactly those that precede its last answer in training.

    For a text record: the first half of its tokens, at most 32 and at least one.
    """
    return _Encoder(tokenizer, config).encode_prompt(record)


def encode_question(question: str | Sequence[Message], tokenizer: PreTrainedTokenizerBase, config: ExampleConfig) -> list[int]:
    """Return the ids from which to generate the answer to a question, or to the last user message of a chat.

    Raises:
        DataError: there is no question, or the chat template refuses the messages.
    """
    messages = (Message("user", question),) if isinstance(question, str) else tuple(question)
    roles = {message.role for message in messages}
    if not roles <= set(get_args(Role)):
        raise DataError(f"the roles are {', '.join(sorted(roles))}; must be {', '.join(get_args(Role))}")
    if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
        raise DataError(f"the question is {question!r}; must be a text that is not empty, or messages that end with the user's")
    return _Encoder(tokenizer, config).encode_chat_prompt(messages)


def turn_end_id(tokenizer: PreTrainedTokenizerBase, config: ExampleConfig | None = None) -> int | None:
    """Return the id of the token that ends an answer, in examples as in generation; None if there is none.

    It is the control token that the chat template writes after an assistant's turn, or the tokenizer's eos where it writes none.
    """
    return _Encoder(tokenizer, config or ExampleConfig()).turn_end_id


def answer_ids(example: Example) -> NDArray[np.int32]:
    """Return the ids of the scored tokens, `(n_scored,)`."""
    return example.input_ids[example.scored]


# --- windows ---------------------------------------------------------------------------------------------------------


def _overlap(config: ExampleConfig) -> int:
    """Tokens of context at the start of a later window: at least the one whose logits score the next."""
    return max(1, config.overlap)


def _windows(length: int, config: ExampleConfig) -> list[tuple[int, int]]:
    """The `(start, stop)` of windows that cover `length` tokens, each but the first starting in the one before."""
    step = config.max_length - _overlap(config)
    n_later = max(0, -(-(length - config.max_length) // step))
    starts = [step * number for number in range(n_later + 1)]
    return [(start, min(start + config.max_length, length)) for start in starts]


# --- from a record to token ids --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """The text of a sequence.

    Attributes:
        prompt: what generation is given.
        answer: what follows, the end of the turn included.
        earlier: `(start, stop)` in `prompt` of the answers before the last.
    """

    prompt: str
    answer: str
    earlier: tuple[tuple[int, int], ...] = ()


class _Encoder:
    """Turns records into ids with one tokenizer and one configuration. All texts within are masked (`control_tokens`)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ExampleConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.has_template = has_template(tokenizer)
        self.control = ControlTokens(tokenizer)
        self.n_last_only = 0

    def encode(self, record: Record) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The whole sequence of a record, `(T,)` ids and `(T,)` scored."""
        if record.kind == "text":
            ids = self._ids(self._plain(record.answer))
            scored = np.ones(len(ids), dtype=np.bool_)
        else:
            ids, scored = self._encode_answer(record)
        scored[:1] = False
        if not scored.any():
            raise DataError(
                f"{record.source}: no token can be scored in {shorten(record.answer)!r}; must be a text with a second token"
            )
        return np.array(ids, dtype=np.int32), scored

    def encode_prompt(self, record: Record) -> list[int]:
        if record.kind == "text":
            ids = self._ids(self._plain(record.answer))
            return ids[: min(TEXT_PROMPT_LENGTH, max(1, len(ids) // 2))]
        if record.kind == "completion":
            return self._ids(self._plain(record.prompt))
        try:
            return self.encode_chat_prompt(record.messages[:-1])
        except DataError as error:
            raise DataError(f"{record.source}: {error}") from error

    def encode_chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        return self._ids(self._render(self._with_system(messages), generation=True), template=self.has_template)

    def _encode_answer(self, record: Record) -> tuple[list[int], NDArray[np.bool_]]:
        template = self.has_template and record.kind == "chat"
        layout = self._layout(record)
        prompt = self._ids(layout.prompt, template)
        ids = self._ids(layout.prompt + layout.answer, template)
        if ids[: len(prompt)] != prompt:
            ids = prompt + self._ids(layout.answer, template=True)
        has_end = layout.answer.endswith(self.control.names)
        if len(ids) - int(has_end) <= len(prompt):
            raise DataError(f"{record.source}: the answer {shorten(record.answer)!r} has no tokens; must be one or more")
        if not has_end and self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        scored = np.zeros(len(ids), dtype=np.bool_)
        scored[len(prompt) :] = True
        for start, stop in layout.earlier:
            bounds = (_common_length(prompt, self._ids(layout.prompt[:end], template)) for end in (start, stop))
            scored[slice(*bounds)] = True
        return ids, scored

    def _layout(self, record: Record) -> _Layout:
        if record.kind == "completion":
            return _Layout(self._plain(record.prompt), self._plain(record.answer))
        messages = self._with_system(record.messages)
        try:
            prompt, answer = self._last_turn(messages)
        except DataError as error:
            raise DataError(f"{record.source}: {error}") from error
        return _Layout(prompt, answer, self._earlier_answers(messages, prompt))

    def _ids(self, text: str, template: bool = False) -> list[int]:
        """The ids of a masked text; the tokenizer's own bos is added unless a template has seen to it."""
        ids = self.control.encode(text, add_special_tokens=not template)
        if not template and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()  # some tokenizers close every text with eos, which would end the prompt
        return ids

    def _plain(self, text: str) -> str:
        """A text to which no template is applied, masked."""
        return self.control.mask(text, special_only=True)

    def spells_control_tokens(self, record: Record) -> bool:
        """Whether a record without a template holds the name of a control token."""
        texts = () if record.kind == "chat" else (record.prompt, record.answer)
        return any(self._plain(text) != text for text in texts)

    @property
    def turn_end_id(self) -> int | None:
        """The token that ends an answer: the control token that the template writes after it, else eos, if there is one."""
        probe = Record.from_question("Is it?", "Yes, it is.", document="", source="")
        try:
            layout = self._layout(probe)
        except DataError:
            return self.tokenizer.eos_token_id  # type: ignore[no-any-return]
        written = layout.answer.endswith(self.control.names)
        return self._ids(layout.answer, template=True)[-1] if written else self.tokenizer.eos_token_id

    # --- chats ---

    def _last_turn(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The text before the last message, which is the assistant's, and the text of that message with its end."""
        prompt = self._render(messages[:-1], generation=True)
        whole = self._render(messages, generation=False)
        if not whole.startswith(prompt):
            raise DataError(
                "the chat template does not put the answer after its own generation prompt, which ends "
                f"{self.control.unmask(prompt)[-40:]!r}; use a template that does, or records of prompt + completion"
            )
        answer = self._cut_after_turn(whole[len(prompt) :], messages[-1].content)
        if answer.strip() in ("", *self.control.names):
            raise DataError(
                f"the chat template shows nothing of the answer {shorten(self.control.unmask(messages[-1].content))!r}"
            )
        return prompt, answer

    def _cut_after_turn(self, text: str, content: str) -> str:
        """`text` up to the special token that ends the turn of `content`, or without white space that follows it."""
        shown = content if content in text else content.strip()
        after = text.find(shown) + len(shown) if shown in text else len(text.rstrip())
        ends = [(at, -len(token)) for token in self.control.names if (at := text.find(token, after)) >= 0]
        if not ends:
            return text[:after] + text[after:].rstrip()
        at, negative_length = min(ends)
        return text[: at - negative_length]

    def _earlier_answers(self, messages: Sequence[Message], prompt: str) -> tuple[tuple[int, int], ...]:
        """Where the earlier answers are in the prompt; none if the template renders one of them differently there."""
        spans = []
        for number, message in enumerate(messages[:-1], start=1):
            if message.role != "assistant":
                continue
            try:
                before, answer = self._last_turn(messages[:number])
            except DataError:
                before, answer = "", ""
            if not answer or not prompt.startswith(before + answer):
                self.n_last_only += 1
                return ()
            spans.append((len(before), len(before + answer)))
        return tuple(spans)

    def _with_system(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages, masked, behind the system prompt where they have none and the template takes one."""
        own = bool(messages) and messages[0].role == "system"
        if not own and self.config.system_prompt and self._takes_system:
            messages = (Message("system", self.config.system_prompt), *messages)
        return tuple(Message(message.role, self._mask(message)) for message in messages)

    def _mask(self, message: Message) -> str:
        """The message's text, masked; an answer may hold added tokens that are not special, such as those around reasoning."""
        return self.control.mask(message.content, special_only=message.role == "assistant")

    @cached_property
    def _takes_system(self) -> bool:
        """Whether there is a chat template and it accepts a system message."""
        if not self.has_template:
            return False
        try:
            self._render((Message("system", self.config.system_prompt), Message("user", "?")), generation=True)
        except DataError:
            return False
        return True

    def _render(self, messages: Sequence[Message], *, generation: bool) -> str:
        """The text of a chat, with the generation prompt or without."""
        return render_chat(self.tokenizer, messages, generation=generation, date=self.config.template_date)

    def log_format(self) -> None:
        """Log, once for a set of records, what differs from a chat template with a system message."""
        if not self.has_template:
            logger.info("the tokenizer has no chat template: chats are written as Question: … Answer: …, no system prompt")
        elif self.config.system_prompt and not self._takes_system:
            logger.info("the chat template refuses a system message: chats are built without the system prompt")


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """The number of leading ids that two sequences share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right)))


def shared_prefix(sequences: Sequence[Any]) -> int:
    """How many tokens all sequences, of token ids `(n,)` each, begin with in common."""
    shortest = min(map(len, sequences))
    return next((i for i in range(shortest) if len({int(ids[i]) for ids in sequences}) > 1), shortest)
