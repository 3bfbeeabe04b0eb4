"""Answers as OpenAI's clients read them."""

from __future__ import annotations

import codecs
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from tempertilt.serving.answers import Piece
from tempertilt.serving.requests import Job
from tempertilt.serving.sampling import Token
from tempertilt.serving.textstream import token_bytes


class Counts(NamedTuple):
    """Tokens of a request: of its prompts, of its answers, and how many of the prompts' were read for earlier requests."""

    prompt: int
    answer: int
    reused: int


class Writer(ABC):
    """Writes one request's answers in the format of its endpoint."""

    closing = ""
    """What a stream ends with."""

    @abstractmethod
    def opening(self, number: int) -> list[dict[str, Any]]:
        """What a stream begins a choice with, in parts."""

    @abstractmethod
    def deltas(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        """What is new of a choice, in parts."""

    @abstractmethod
    def part(self, choice: dict[str, Any], /) -> dict[str, Any]:
        """A part as an event of a stream."""

    @abstractmethod
    def last(self, counts: Counts) -> dict[str, Any] | None:
        """The event after all parts, if there is one."""

    @abstractmethod
    def complete(self, number: int, text: str, tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        """A whole choice."""

    @abstractmethod
    def object(self, choices: Sequence[dict[str, Any]], counts: Counts) -> dict[str, Any]:
        """The whole response, which is no stream."""


class ChoicesWriter(Writer):
    """Writes choices, as `/v1/completions` and `/v1/chat/completions` have them.

    Args:
        job: the request.
        request_id: part of the identifier.
        usage: whether a stream tells the counts of tokens at its end.
    """

    prefix, whole, chunk, closing = "", "", "", "data: [DONE]\n\n"

    def __init__(self, job: Job, request_id: str, usage: bool) -> None:
        self._job, self._tokenizer, self._usage = job, job.model.reader, usage
        self._id, self._created = f"{self.prefix}-{request_id}", int(time.time())

    @abstractmethod
    def delta(self, number: int, text: str, tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        """A part of a choice: text and tokens that came, or why it has ended."""

    def deltas(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        """What is new of a choice, in parts; the reason for its end comes alone."""
        parts = [self.delta(number, piece.text, piece.tokens, None)] if piece.text or piece.tokens else []
        return [*parts, self.delta(number, "", (), piece.finish_reason)] if piece.finish_reason else parts

    def object(self, choices: Sequence[dict[str, Any]], counts: Counts) -> dict[str, Any]:
        """The whole response, which is no stream."""
        return self._frame(self.whole, choices) | {"usage": _usage(counts)}

    def part(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A chunk of a stream."""
        return self._frame(self.chunk, [choice]) | ({"usage": None} if self._usage else {})

    def last(self, counts: Counts) -> dict[str, Any] | None:
        """The chunk with the counts of tokens, if it is wanted."""
        return self._frame(self.chunk, []) | {"usage": _usage(counts)} if self._usage else None

    def _frame(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        names = {"id": self._id, "object": kind, "created": self._created, "model": self._job.model.name}
        return names | {"system_fingerprint": None, "choices": list(choices)}

    def _text(self, token: int) -> str:
        return token_bytes(self._tokenizer, token).decode("utf-8", "replace")


def _usage(counts: Counts) -> dict[str, Any]:
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.answer,
        "total_tokens": counts.prompt + counts.answer,
        "prompt_tokens_details": {"cached_tokens": counts.reused},
    }


class CompletionWriter(ChoicesWriter):
    """`/v1/completions`."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, job: Job, request_id: str, usage: bool) -> None:
        super().__init__(job, request_id, usage)
        choices = len(job.prompts) * job.choices
        self._offsets = [0] * choices
        self._characters = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(choices)]

    def opening(self, number: int) -> list[dict[str, Any]]:
        """What a stream begins a choice with: the prompt, if it is to be echoed."""
        text = self._echo(number)
        return [self.delta(number, text, (), None)] if text else []

    def delta(self, number: int, text: str, tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        """A part of a choice."""
        logprobs = self._logprobs(number, tokens) if tokens else None
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def complete(self, number: int, text: str, tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        """A whole choice."""
        logprobs = self._logprobs(number, tokens)
        return {"index": number, "text": self._echo(number) + text, "logprobs": logprobs, "finish_reason": reason}

    def _echo(self, number: int) -> str:
        return "" if self._job.texts is None else self._job.texts[number // self._job.choices]

    def _logprobs(self, number: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self._job.sampling.logprobs is None:
            return None
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [None if token.logprob is None else self._alternatives(token) for token in tokens],
            "text_offset": [self._offset(number, token.id) for token in tokens],
        }

    def _offset(self, number: int, token: int) -> int:
        """Where a token's text begins, in characters; special tokens have none."""
        offset = self._offsets[number]
        if token not in self._tokenizer.all_special_ids:
            self._offsets[number] += len(self._characters[number].decode(token_bytes(self._tokenizer, token)))
        return offset

    def _alternatives(self, token: Token) -> dict[str, float]:
        """The likeliest tokens and the chosen one by their texts; of several with one text the likeliest."""
        alternatives: dict[str, float] = {}
        for other, logprob in (*token.top, (token.id, token.logprob)):
            if logprob is not None:
                alternatives.setdefault(self._text(other), logprob)
        return alternatives


class ChatWriter(ChoicesWriter):
    """`/v1/chat/completions`."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, number: int) -> list[dict[str, Any]]:
        """What a stream begins a choice with: who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [{"index": number, "delta": delta, "logprobs": None, "finish_reason": None}]

    def delta(self, number: int, text: str, tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        """A part of a choice."""
        logprobs = self._logprobs(tokens) if tokens else None
        return {"index": number, "delta": {} if reason else {"content": text}, "logprobs": logprobs, "finish_reason": reason}

    def complete(self, number: int, text: str, tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        """A whole choice."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": number, "message": message, "logprobs": self._logprobs(tokens), "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self._job.sampling.logprobs is None:
            return None
        content = [
            self._entry(token.id, token.logprob) | {"top_logprobs": [self._entry(*other) for other in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self._text(token), "logprob": logprob, "bytes": list(token_bytes(self._tokenizer, token))}
