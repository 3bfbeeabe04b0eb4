"""What stands before vLLM's application where a model has a reply: what a reply breaks off is not shown.

As where transformers serve, an answer that is not streamed is the reply alone, and a stream lags, so that it is known in time
whether a reply breaks off what it is about to show. vLLM hands on texts, not tokens. So a reply is known by its words after
"... " within an answer, and the parts of a stream are counted, of which each has a token or more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tempertilt.integrations.vllm.naming import ASKS
from tempertilt.serving.sent import event_text

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

REPLIES = "TEMPERTILT_REPLIES"
_TEXTS = ("reasoning", "reasoning_content", "thinking", "content", "text")  # fields that hold what was said, in this order
_NUMBERS = ("logprobs", "token_ids")  # of the tokens that were said


class Spoken(NamedTuple):
    """A reply as a text.

    Attributes:
        alone: as an answer by itself.
        tail: what breaks off a sentence, then the reply.
        tokens: of the tail.
    """

    alone: str
    tail: str
    tokens: int

    def begins(self, text: str) -> int | None:
        """Where in an answer's text the reply begins that breaks it off; None where none does, or half of it is not there yet."""
        if (at := text.find(self.tail, 1)) > 0:
            return at
        sizes = range(min(len(self.tail), len(text)) - 1, len(self.tail) // 2, -1)
        return next((len(text) - size for size in sizes if text.endswith(self.tail[:size])), None)

    def said(self, text: str, begin: int) -> str:
        """The reply by itself, as far as a text has come that it breaks off at a place."""
        return self.alone[: max(0, len(text) - begin - len(self.tail) + len(self.alone))]


class Replies(NamedTuple):
    """The replies of all models that are served.

    Attributes:
        spoken: each of them.
        lag: tokens by which a stream lags, beside those of the longest reply; 0 = it does not lag.
    """

    spoken: tuple[Spoken, ...]
    lag: int

    @property
    def most_held(self) -> int:
        """Parts of a stream that wait."""
        return self.lag and self.lag + max((reply.tokens for reply in self.spoken), default=0)

    def begin(self, text: str) -> tuple[Spoken, int] | None:
        """The reply that breaks an answer's text off, and where; None if none does."""
        return next(((reply, at) for reply in self.spoken if (at := reply.begins(text)) is not None), None)

    def whole(self, text: str) -> str:
        """What is shown of the text of an answer that is not streamed."""
        found = self.begin(text)
        return text if found is None else found[0].said(text, found[1])

    def to_environment(self) -> dict[str, str]:
        """The variable that tells the process that serves."""
        return {REPLIES: json.dumps(self)}

    @classmethod
    def of_environment(cls) -> Replies:
        """What `to_environment` has written."""
        spoken, lag = json.loads(os.environ[REPLIES])
        return cls(tuple(Spoken(*one) for one in spoken), lag)


class ShowReplies:
    """ASGI middleware, which vLLM makes from an import path: the replies are the environment's."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self._replies = app, Replies.of_environment()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; of its answer send what may be shown."""
        shown = scope["type"] == "http" and scope["path"].rstrip("/") in ASKS
        await self.app(scope, receive, _Sender(self._replies, send) if shown else send)


class _Sender:
    """An ASGI `send` that changes answers: a stream event by event, another one when it is whole."""

    def __init__(self, replies: Replies, send: Send) -> None:
        self._replies, self._send = replies, send
        self._stream = EventStream(replies)
        self._start: Message | None = None  # of an answer that is read as a whole
        self._body, self._kind = bytearray(), b""

    async def __call__(self, message: Message) -> None:
        """Take a message of the application."""
        if message["type"] == "http.response.start":
            kinds = (value for name, value in message["headers"] if name.lower() == b"content-type")
            self._kind = next(kinds, b"").partition(b";")[0] if message["status"] == 200 else b""
            if self._kind == b"application/json":
                self._start = message
                return
        elif message["type"] == "http.response.body" and self._kind == b"text/event-stream":
            more = message.get("more_body", False)
            message = {**message, "body": self._stream.push(message.get("body", b""), over=not more)}
            if more and not message["body"]:
                return
        elif message["type"] == "http.response.body" and self._start is not None:
            self._body += message.get("body", b"")
            if message.get("more_body", False):
                return
            body = whole_answer(bytes(self._body), self._replies)
            others = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
            await self._send({**self._start, "headers": [*others, (b"content-length", b"%d" % len(body))]})
            message = {"type": "http.response.body", "body": body}
        await self._send(message)


def whole_answer(body: bytes, replies: Replies) -> bytes:
    """The JSON of an answer that is not streamed, as it may be shown."""
    answer = json.loads(body)
    changed = [_show(part, replies) for part in _parts(answer)]
    return json.dumps(answer, ensure_ascii=False).encode() if any(changed) else body


def _parts(answer: Any) -> Iterator[dict[str, Any]]:
    """The parts of an answer that hold texts: choices, of the newer interfaces pieces of what is put out."""
    if not isinstance(answer, dict):
        return
    yield from answer.get("choices") or ()
    for item in (*(answer.get("output") or ()), answer):
        yield from item["content"] if isinstance(item.get("content"), list) else ()


def _show(part: dict[str, Any], replies: Replies) -> bool:
    """Change the texts of a part to what may be shown; say whether that is something else."""
    changed = False
    for holder in (part, part.get("message") or {}):
        for name in _TEXTS:
            if isinstance(text := holder.get(name), str) and (shown := replies.whole(text)) != text:
                holder[name], changed = shown, True
    if changed:
        _forget_numbers(part)
    return changed


def _forget_numbers(part: dict[str, Any]) -> None:
    for name in _NUMBERS:
        if part.get(name):
            part[name] = [] if isinstance(part[name], list) else None


class _Text(NamedTuple):
    """A text that goes on in an event: which of the answer's, where it is, and where the numbers of its tokens are."""

    key: tuple[Any, ...]
    holder: dict[str, Any]
    name: str
    part: dict[str, Any]


class _Piece(NamedTuple):
    """An event of a stream, or a part of one.

    Attributes:
        event: as JSON.
        text: at most one; None = none goes on.
        ends: the texts that are over with it, by how their keys begin; None = none.
    """

    event: dict[str, Any]
    text: _Text | None = None
    ends: tuple[Any, ...] | None = None


def _pieces(event: dict[str, Any]) -> Iterator[_Piece]:
    """An event of one of the four interfaces, parted so that each piece has one text."""
    if isinstance(event.get("type"), str):
        yield _of_newer_interface(event, event["type"])
    elif event.get("choices"):
        for choice in event["choices"]:
            yield from _of_choice(event, choice)
    else:  # usage, or an error
        yield _Piece(event)


def _of_newer_interface(event: dict[str, Any], kind: str) -> _Piece:
    """An event of `/v1/responses` or `/v1/messages`."""
    if kind == "ping":
        return _Piece(event)
    holder = event["delta"] if isinstance(event.get("delta"), dict) else event
    names = [name for name in (*_TEXTS, "delta") if isinstance(holder.get(name), str)]
    if not names or not kind.endswith(("text.delta", "block_delta")):
        return _Piece(event, ends=())
    place = (event.get("output_index"), event.get("content_index"), event.get("index"))
    return _Piece(event, _Text((kind, *place), holder, names[0], event))


def _of_choice(event: dict[str, Any], choice: dict[str, Any]) -> Iterator[_Piece]:
    """An event of `/v1/chat/completions`, whose texts are in a `delta`, or of `/v1/completions`."""
    holder = choice["delta"] if isinstance(choice.get("delta"), dict) else choice
    names = [name for name in _TEXTS if isinstance(holder.get(name), str) and holder[name]]
    place = (choice.get("index"),)
    ends = place if choice.get("finish_reason") is not None or holder.get("tool_calls") else None
    if not names:
        yield _Piece({**event, "choices": [choice]}, None, ends)
    for name in names:
        last = name == names[-1]
        mine = {key: value for key, value in holder.items() if key == name or key not in names}
        part = mine if holder is choice else {**choice, "delta": mine}
        if not last:
            part["finish_reason"] = None
        yield _Piece({**event, "choices": [part]}, _Text((*place, name), mine, name, part), ends if last else None)


@dataclass
class _Track:
    """One text of a streamed answer.

    Attributes:
        text: so far.
        held: events that wait, and how long the text was behind each.
        sent: characters that were shown.
        broken: the reply that breaks the text off, where, and how much had been shown before.
    """

    replies: Replies
    text: str = ""
    held: list[tuple[dict[str, Any], int]] = field(default_factory=list)
    sent: int = 0
    broken: tuple[Spoken, int, int] | None = None

    def push(self, event: dict[str, Any], new: _Text) -> list[dict[str, Any]]:
        """Take an event; return those that may be shown now."""
        self.text += new.holder[new.name]
        if self.broken is None and self.replies.lag and (found := self.replies.begin(self.text)):
            self.broken, self.held = (*found, min(self.sent, found[1])), []
        if self.broken is None:
            self.held.append((event, len(self.text)))
            return self._release(self.replies.most_held)
        new.holder[new.name] = self.shown[self.sent :]
        self.sent = len(self.shown)
        _forget_numbers(new.part)
        return [event]

    def end(self) -> list[dict[str, Any]]:
        """The text is over: all that waits."""
        return self._release(0)

    def _release(self, keep: int) -> list[dict[str, Any]]:
        """Hand on all but the last events."""
        cut = max(0, len(self.held) - keep)
        free, self.held = self.held[:cut], self.held[cut:]
        self.sent = free[-1][1] if free else self.sent
        return [event for event, _ in free]

    @property
    def shown(self) -> str:
        """All that is shown of the text, unless more of it waits."""
        if self.broken is None:
            return self.text
        reply, begin, before = self.broken
        return self.text[:before] + self.text[begin:] if before else reply.said(self.text, begin)


class EventStream:
    """Server-sent events of an answer, as they may be shown.

    Args:
        replies: of the models.
    """

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self._tracks: dict[tuple[Any, ...], _Track] = {}
        self._rest = b""

    def push(self, data: bytes, over: bool = False) -> bytes:
        """Take bytes as they come; return those to send.

        Args:
            data: of events, parted anywhere.
            over: whether these are the last.
        """
        *blocks, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        out = b"".join(self._take(block) for block in blocks)
        if over:
            out += self._end(()) + self._rest
        return out

    def _take(self, block: bytes) -> bytes:
        data = b"\n".join(line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:"))
        try:
            event = json.loads(data)
        except ValueError:  # a comment, or the end of the stream
            return (self._end(()) if data else b"") + block + b"\n\n"
        out = b""
        for piece in _pieces(event):
            if piece.text is not None:
                track = self._tracks.setdefault(piece.text.key, _Track(self._replies))
                out += self._write(track.push(piece.event, piece.text))
            if piece.ends is not None:
                out += self._end(piece.ends)
            if piece.text is None:
                if "type" in piece.event:  # choices repeat no text
                    self._show_ends(piece.event)
                out += self._write([piece.event])
        return out

    def _end(self, keys: Sequence[Any]) -> bytes:
        """What waits of the texts whose keys begin so."""
        ended = (track for key, track in self._tracks.items() if key[: len(keys)] == tuple(keys))
        return b"".join(self._write(track.end()) for track in ended)

    def _show_ends(self, value: Any) -> None:
        """Put into an event that repeats whole texts what was shown of them."""
        if isinstance(value, list):
            for one in value:
                self._show_ends(one)
        elif isinstance(value, dict):
            for name, text in value.items():
                if name in _TEXTS and isinstance(text, str):
                    track = next((track for track in self._tracks.values() if track.text == text), None)
                    if (shown := track.shown if track else self._replies.whole(text)) != text:
                        value[name] = shown
                        _forget_numbers(value)
                else:
                    self._show_ends(text)

    def _write(self, events: Sequence[dict[str, Any]]) -> bytes:
        return "".join(map(event_text, events)).encode()
