"""From the pieces that the engine gives to one JSON object, or to server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tempertilt.serving.answers import Answer, Piece
from tempertilt.serving.engine import Engine
from tempertilt.serving.errors import error_body
from tempertilt.serving.metrics import Watch
from tempertilt.serving.requests import Job
from tempertilt.serving.responses import Counts, Writer
from tempertilt.serving.sampling import Token
from tempertilt.serving.sent import event_text
from tempertilt.serving.shown import ShownAnswer

log = logging.getLogger("tempertilt")

DISCONNECT_CHECK = 0.25  # seconds between looks whether a client is still there
OK, DISCONNECTED, ERROR = "ok", "disconnected", "error"


class Delivery:
    """The answers to one request on their way from the engine to the client.

    Args:
        job: the request; its answers are queued.
        engine: that writes them.
        watch: that times them.
        lag: tokens by which answers of a model with a reply are shown late, 0 = as they come; None = they are shown when they are
            over.
        client: who asks; clients take turns.

    Raises:
        BusyError: too many answers wait.
    """

    def __init__(self, job: Job, engine: Engine, watch: Watch, lag: int | None = None, client: str = "") -> None:
        self._job, self._engine, self._watch = job, engine, watch
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Piece]]()
        self._answers: list[Answer] = job.answers(self._give)
        for answer in self._answers:
            answer.client = client
        self._shown = [ShownAnswer(job, answer, lag) for answer in self._answers]
        engine.submit(self._answers)

    def _give(self, number: int, piece: Piece) -> None:
        with suppress(RuntimeError):  # the loop has been closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (number, piece))

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all choices as they come, until every choice has ended; raises what the engine met."""
        left = len(self._answers)
        while left:
            number, piece = await self._queue.get()
            if piece.error is not None:
                raise piece.error
            self._watch.token()
            left -= piece.finish_reason is not None
            yield number, self._shown[number].take(piece)

    def _counts(self, answer_tokens: int) -> Counts:
        """At the end; of several choices of a prompt, the first has read it."""
        reused = sum(answer.reused for answer in self._answers[:: self._job.choices])
        return Counts(self._job.prompt_tokens, answer_tokens, reused)

    def done(self, outcome: str) -> None:
        """The request is over: let go of what is not finished, and count; again it does nothing."""
        self._engine.cancel(self._answers)
        counts = self._counts(sum(len(answer.tokens) for answer in self._answers))
        self._watch.over(outcome, counts.prompt, counts.answer, counts.reused)

    async def whole(self, request: Request, writer: Writer) -> Response:
        """One JSON object with all choices; nothing, and early, if the client disconnects."""
        outcome, collecting = ERROR, asyncio.ensure_future(self._collect())
        try:
            while not (await asyncio.wait([collecting], timeout=DISCONNECT_CHECK))[0]:
                if await request.is_disconnected():
                    outcome = DISCONNECTED
                    return Response(status_code=499)
            gathered = collecting.result()
            outcome = OK
        except asyncio.CancelledError:
            outcome = DISCONNECTED
            raise
        finally:
            collecting.cancel()
            self.done(outcome)
        choices = [writer.complete(i, choice.text, choice.tokens, choice.finish_reason) for i, choice in enumerate(gathered)]
        return JSONResponse(writer.object(choices, self._counts(sum(choice.length for choice in gathered))))

    async def _collect(self) -> list[Piece]:
        """Every choice as one piece."""
        texts: list[list[str]] = [[] for _ in self._answers]
        tokens: list[list[Token]] = [[] for _ in self._answers]
        last = [Piece() for _ in self._answers]
        async for number, piece in self.pieces():
            texts[number].append(piece.text)
            tokens[number].extend(piece.tokens)
            last[number] = piece
        return [end._replace(text="".join(text), tokens=tuple(part)) for end, text, part in zip(last, texts, tokens)]

    async def events(self, writer: Writer) -> AsyncIterator[str]:
        """Server-sent events."""
        outcome, total = DISCONNECTED, 0
        try:
            for number in range(len(self._answers)):
                for choice in writer.opening(number):
                    yield event_text(writer.part(choice))
            async for number, piece in self.pieces():
                total += piece.length if piece.finish_reason is not None else 0
                for choice in writer.deltas(number, piece):
                    yield event_text(writer.part(choice))
            if (counts := writer.last(self._counts(total))) is not None:
                yield event_text(counts)
            yield writer.closing
            outcome = OK
        except (GeneratorExit, asyncio.CancelledError):
            raise
        except Exception as error:
            log.error("a stream failed", exc_info=error)
            outcome = ERROR
            yield event_text(error_body("the answer could not be finished", "server_error"))
        finally:
            self.done(outcome)


class EventStream(StreamingResponse):
    """Server-sent events that let go of their answers also if the client disconnects before the first."""

    def __init__(self, delivery: Delivery, writer: Writer) -> None:
        super().__init__(delivery.events(writer), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._delivery = delivery

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._delivery.done(DISCONNECTED)
