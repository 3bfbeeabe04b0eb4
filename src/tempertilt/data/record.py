"""The record: one piece of text to forget or to keep."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["chat", "completion", "text"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a chat: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One piece of text to forget or to keep.

    Attributes:
        kind: "chat" (rendered with the chat template), "completion" (prompt and completion as they are), or "text".
        messages: the turns of a chat, the last one from the assistant; empty for the other kinds.
        prompt: the prompt of a completion; empty for the other kinds.
        answer: the last assistant turn, the completion, or the whole text.
        document: the unit that splits never cut.
        source: where the record was read, for messages: "path/to/file.jsonl:12".
    """

    kind: Kind
    messages: tuple[Message, ...]
    prompt: str
    answer: str
    document: str
    source: str

    @classmethod
    def from_messages(cls, messages: Iterable[Message], *, document: str, source: str) -> Record:
        """Return a chat record; the last message must be the assistant's."""
        turns = tuple(messages)
        return cls("chat", turns, "", turns[-1].content, document, source)

    @classmethod
    def from_question(cls, question: str, answer: str, *, document: str, source: str) -> Record:
        """Return a chat record of one question and its answer."""
        messages = (Message("user", question), Message("assistant", answer))
        return cls.from_messages(messages, document=document, source=source)

    @classmethod
    def from_completion(cls, prompt: str, completion: str, *, document: str, source: str) -> Record:
        """Return a record of a prompt and its completion, to which no chat template is applied."""
        return cls("completion", (), prompt, completion, document, source)

    @classmethod
    def from_text(cls, text: str, *, document: str, source: str) -> Record:
        """Return a record of plain text."""
        return cls("text", (), "", text, document, source)

    @property
    def key(self) -> str:
        """SHA-256 (hex) of kind and content, `document` and `source` left out.

        The content is compared after Unicode NFC normalisation and with every run of white space taken as one space
        (and none at the ends), so trivial variants of a text have the same key, though their tokens may differ.
        """
        turns = [(message.role, _normalise(message.content)) for message in self.messages]
        texts = [] if turns else [_normalise(self.prompt), _normalise(self.answer)]
        return hashlib.sha256(json.dumps([self.kind, turns, texts]).encode()).hexdigest()

    @property
    def question(self) -> str:
        """What a report shows: the last user message, the prompt, or the first 80 characters of a text."""
        if self.kind == "chat":
            return next((message.content for message in reversed(self.messages) if message.role == "user"), "")
        return self.prompt if self.kind == "completion" else shorten(self.answer, 80)


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def shorten(text: str, length: int = 60) -> str:
    """At most `length` characters, the last one an ellipsis where there were more."""
    return text if len(text) <= length else text[: length - 1] + "…"


def shown(value: object) -> str:
    """A value as an error shows it: shortened, with its type."""
    return "null" if value is None else f"{shorten(repr(value))} ({type(value).__name__})"
