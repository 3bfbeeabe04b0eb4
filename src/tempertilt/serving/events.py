"""Answers of `/v1/responses`, whole and as a stream of named events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tempertilt.serving.answers import Piece
from tempertilt.serving.requests import Job
from tempertilt.serving.responses import Counts, Writer
from tempertilt.serving.sampling import Token
from tempertilt.serving.schema import ResponsesRequest

PLACE = {"output_index": 0}
PART = {**PLACE, "content_index": 0}


class ResponsesWriter(Writer):
    """Writes the one answer to a request of `/v1/responses`: a message with one text.

    Args:
        job: the request, made ready.
        request_id: part of the identifiers.
        request: as it was given, of which a response repeats some fields.
    """

    def __init__(self, job: Job, request_id: str, request: ResponsesRequest) -> None:
        self._job, self._request = job, request
        self._id, self._item_id, self._created = f"resp_{request_id}", f"msg_{request_id}", int(time.time())
        self._text: list[str] = []
        self._reason: str | None = None
        self._events = 0

    def opening(self, _number: int) -> list[dict[str, Any]]:
        """The events before the text."""
        return [
            {"type": "response.created", "response": self._response("in_progress", [])},
            {"type": "response.in_progress", "response": self._response("in_progress", [])},
            {"type": "response.output_item.added", **PLACE, "item": self._message("in_progress", [])},
            {"type": "response.content_part.added", **self._in_part, "part": _part("")},
        ]

    def deltas(self, _number: int, piece: Piece) -> list[dict[str, Any]]:
        """What is new of the text; at its end the whole of it again, as OpenAI's server does."""
        self._text.append(piece.text)
        new = {"type": "response.output_text.delta", **self._in_part, "delta": piece.text, "logprobs": []}
        return ([new] if piece.text else []) + (self._end(piece.finish_reason) if piece.finish_reason else [])

    def part(self, event: dict[str, Any]) -> dict[str, Any]:
        """An event with its number."""
        self._events += 1
        return event | {"sequence_number": self._events - 1}

    def last(self, counts: Counts) -> dict[str, Any]:
        """The event with the whole response."""
        item = self._item("".join(self._text), self._reason)
        response = self._response(item["status"], [item], counts)
        return self.part({"type": f"response.{item['status']}", "response": response})

    def complete(self, _number: int, text: str, _tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        """The message."""
        return self._item(text, reason)

    def object(self, choices: Sequence[dict[str, Any]], counts: Counts) -> dict[str, Any]:
        """The whole response, which is no stream."""
        return self._response(choices[0]["status"], choices, counts)

    def _end(self, reason: str) -> list[dict[str, Any]]:
        self._reason, text = reason, "".join(self._text)
        return [
            {"type": "response.output_text.done", **self._in_part, "text": text, "logprobs": []},
            {"type": "response.content_part.done", **self._in_part, "part": _part(text)},
            {"type": "response.output_item.done", **PLACE, "item": self._item(text, reason)},
        ]

    @property
    def _in_part(self) -> dict[str, Any]:
        return PART | {"item_id": self._item_id}

    def _item(self, text: str, reason: str | None) -> dict[str, Any]:
        return self._message("incomplete" if reason == "length" else "completed", [_part(text)])

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(self, status: str, output: Sequence[dict[str, Any]], counts: Counts | None = None) -> dict[str, Any]:
        """A response; its usage is known at the end."""
        request = self._request
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": {},
            "model": self._job.model.name,
            "output": list(output),
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": self._job.sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": self._job.sampling.top_p,
            "truncation": "disabled",
            "usage": None if counts is None else _usage(counts),
            "user": request.user,
        }


def _usage(counts: Counts) -> dict[str, Any]:
    return {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": counts.reused, "cache_write_tokens": 0},
        "output_tokens": counts.answer,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts.prompt + counts.answer,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
