"""Answers as OpenAI's clients read them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tempertilt.serving.requests import Job
from tempertilt.serving.sampling import Choice
from tempertilt.serving.textstream import decode


class Shape(ABC):
    """One request's answers in the format of its endpoint.

    Args:
        job: the request.
        request_id: part of the identifier.
    """

    prefix, whole, chunk = "", "", ""

    def __init__(self, job: Job, request_id: str) -> None:
        self._job, self._tokenizer = job, job.model.reader
        self._id, self._created = f"{self.prefix}-{request_id}", int(time.time())

    @abstractmethod
    def opening(self, number: int) -> dict[str, Any] | None:
        """What a stream begins a choice with."""

    @abstractmethod
    def delta(self, number: int, text: str, choices: Sequence[Choice], reason: str | None) -> dict[str, Any]:
        """What is new of a choice."""

    @abstractmethod
    def complete(self, number: int, text: str, choices: Sequence[Choice], reason: str | None) -> dict[str, Any]:
        """A whole choice."""

    def object(self, choices: Sequence[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The whole response, which is no stream."""
        return self._frame(self.whole) | {"choices": list(choices), "usage": usage}

    def part(self, choices: Sequence[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        """A chunk of a stream."""
        return self._frame(self.chunk) | {"choices": list(choices)} | ({} if usage is None else {"usage": usage})

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._job.model.name}

    def usage(self, answer_tokens: int) -> dict[str, int]:
        """Counts of tokens."""
        prompt = self._job.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": answer_tokens, "total_tokens": prompt + answer_tokens}

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))


class CompletionShape(Shape):
    """`/v1/completions`."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, job: Job, request_id: str) -> None:
        super().__init__(job, request_id)
        self._offsets = [0] * (len(job.prompts) * job.choices)

    def opening(self, number: int) -> dict[str, Any] | None:
        """What a stream begins a choice with: the prompt, if it is to be echoed."""
        text = self._echo(number)
        return None if text is None else self._choice(number, text, (), None)

    def delta(self, number: int, text: str, choices: Sequence[Choice], reason: str | None) -> dict[str, Any]:
        """What is new of a choice."""
        return self._choice(number, text, choices, reason)

    def complete(self, number: int, text: str, choices: Sequence[Choice], reason: str | None) -> dict[str, Any]:
        """A whole choice."""
        return self._choice(number, (self._echo(number) or "") + text, choices, reason)

    def _echo(self, number: int) -> str | None:
        return None if self._job.texts is None else self._job.texts[number // self._job.choices]

    def _choice(self, number: int, text: str, choices: Sequence[Choice], reason: str | None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": self._logprobs(number, choices), "finish_reason": reason}

    def _logprobs(self, number: int, choices: Sequence[Choice]) -> dict[str, Any] | None:
        if self._job.sampling.logprobs is None:
            return None
        tokens, offsets = [], []
        for choice in choices:
            tokens.append(self._text(choice.token))
            offsets.append(self._offsets[number])
            self._offsets[number] += len(decode(self._tokenizer, [choice.token]))
        top: list[dict[str, float] | None] = [None if c.logprob is None else self._alternatives(c) for c in choices]
        return {
            "tokens": tokens,
            "token_logprobs": [choice.logprob for choice in choices],
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def _alternatives(self, choice: Choice) -> dict[str, float]:
        """The likeliest tokens and the chosen one by their texts; of several with one text the likeliest."""
        found: dict[str, float] = {}
        for token, logprob in (*choice.top, (choice.token, choice.logprob)):
            if logprob is not None:
                found.setdefault(self._text(token), logprob)
        return found


class ChatShape(Shape):
    """`/v1/chat/completions`."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, number: int) -> dict[str, Any] | None:
        """What a stream begins a choice with: who speaks."""
        return {"index": number, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def delta(self, number: int, text: str, choices: Sequence[Choice], reason: str | None) -> dict[str, Any]:
        """What is new of a choice."""
        delta = {"content": text} if text or not reason else {}
        return {"index": number, "delta": delta, "logprobs": self._logprobs(choices), "finish_reason": reason}

    def complete(self, number: int, text: str, choices: Sequence[Choice], reason: str | None) -> dict[str, Any]:
        """A whole choice."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": number, "message": message, "logprobs": self._logprobs(choices), "finish_reason": reason}

    def _logprobs(self, choices: Sequence[Choice]) -> dict[str, Any] | None:
        if self._job.sampling.logprobs is None:
            return None
        content = [
            self._entry(choice.token, choice.logprob) | {"top_logprobs": [self._entry(*other) for other in choice.top]}
            for choice in choices
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode("utf-8", "replace"))}
