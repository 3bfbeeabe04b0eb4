"""The application: that of `transformers serve`, with the endpoints that it lacks or that can't be offered as they are.

transformers gives the FastAPI application with its life cycle, request ids, `/v1/models` and `/health`. Its answers have no
log-probabilities, no `n` and no `echo`; a request may hand it a whole generation configuration, load any model of the hub and
unload all. So the two endpoints that answer are replaced, and those that load and unload are taken away.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from fastapi import Body, FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send
from transformers.cli.serving.server import build_server

from tempertilt.serving.config import ServeConfig
from tempertilt.serving.engine import Answer, BusyError, Engine, Piece
from tempertilt.serving.guards import LimitBody, RequireKey, error_body
from tempertilt.serving.metrics import Metrics, Watch
from tempertilt.serving.models import ServedModel
from tempertilt.serving.requests import Job, RequestError, find_model, prepare_chat, prepare_completion
from tempertilt.serving.responses import ChatShape, CompletionShape, Shape
from tempertilt.serving.sampling import Choice
from tempertilt.serving.schema import ChatRequest, CompletionRequest

log = logging.getLogger("tempertilt")

KEPT = ("/v1/models", "/health", "/openapi.json")
HANG_UP_CHECK = 0.25  # seconds between looks whether a client is still there


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """Every answer that is not 2xx."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 405, 413, 415, 422, 429, 500, 503)
}


class Catalogue:
    """What transformers' application asks of a model manager."""

    def __init__(self, models: Mapping[str, ServedModel], engine: Engine) -> None:
        self._models, self._engine = models, engine

    def list_models(self) -> list[dict[str, Any]]:
        """OpenAI's description of every model."""
        return [describe(model) for model in self._models.values()]

    def shutdown(self) -> None:
        """The server has finished its answers."""
        self._engine.stop()


def describe(model: ServedModel) -> dict[str, Any]:
    """OpenAI's description of a model; it does not name directories."""
    facts = {"id": model.name, "object": "model", "created": model.created, "owned_by": "tempertilt"}
    return facts | {"max_model_len": model.max_model_len}


def build_app(models: Mapping[str, ServedModel], config: ServeConfig) -> FastAPI:
    """The application; its engine, running, is `app.state.engine`.

    Args:
        models: by name.
        config: key and limits.
    """
    os.environ["FASTAPI_OTEL_AUTO_CONFIGURE"] = "false"
    engine = Engine(
        {name: model.decoder for name, model in models.items()},
        max_batch_size=config.max_batch_size,
        max_waiting=config.max_waiting,
    )
    unused: Any = None  # handlers of endpoints that are taken away below
    manager: Any = Catalogue(models, engine)
    state: Any = engine
    app: FastAPI = build_server(
        manager,
        unused,
        completion_handler=unused,
        response_handler=unused,
        transcription_handler=unused,
        systemone_handler=unused,
        generation_state=state,
    )
    app.title, app.description = "tempertilt", "OpenAI-compatible server of unlearned models"
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") in KEPT]
    app.state.engine, app.state.metrics = engine, Metrics(engine)
    _add_endpoints(app, Endpoints(models, config, engine, app.state.metrics))
    _add_errors(app, app.state.metrics)
    app.add_middleware(LimitBody, limit=config.max_body_bytes)
    if config.api_key:
        app.add_middleware(RequireKey, key=config.api_key)
    return app


def _add_endpoints(app: FastAPI, endpoints: Endpoints) -> None:
    options: dict[str, Any] = {"responses": ERRORS, "response_model": None}

    @app.post("/v1/completions", **options)
    async def completions(request: HttpRequest, body: Annotated[CompletionRequest, Body()]) -> Response:
        return await endpoints.completion(request, body)

    @app.post("/v1/chat/completions", **options)
    async def chat_completions(request: HttpRequest, body: Annotated[ChatRequest, Body()]) -> Response:
        return await endpoints.chat(request, body)

    @app.get("/v1/models/{name}", responses=ERRORS, response_model=None)
    async def model(name: str) -> Response:
        return JSONResponse(endpoints.describe(name))

    @app.get("/metrics", response_class=Response, responses=ERRORS)
    async def metrics() -> Response:
        return Response(endpoints.metrics.text(), media_type=Metrics.content_type)


class Endpoints:
    """The endpoints that answer."""

    def __init__(self, models: Mapping[str, ServedModel], config: ServeConfig, engine: Engine, metrics: Metrics) -> None:
        self._models, self._config, self._engine, self.metrics = models, config, engine, metrics

    def describe(self, name: str) -> dict[str, Any]:
        """One model."""
        return describe(find_model(name, self._models))

    async def completion(self, request: HttpRequest, body: CompletionRequest) -> Response:
        """`/v1/completions`."""
        job = await asyncio.to_thread(prepare_completion, body, self._models, self._config)
        shape = CompletionShape(job, request.state.request_id)
        return await self._answer(request, job, shape, "completions", bool(body.stream), _wants_usage(body))

    async def chat(self, request: HttpRequest, body: ChatRequest) -> Response:
        """`/v1/chat/completions`."""
        job = await asyncio.to_thread(prepare_chat, body, self._models, self._config)
        shape = ChatShape(job, request.state.request_id)
        return await self._answer(request, job, shape, "chat", bool(body.stream), _wants_usage(body))

    async def _answer(self, request: HttpRequest, job: Job, shape: Shape, endpoint: str, streamed: bool, usage: bool) -> Response:
        watch = Watch(self.metrics, endpoint, job.model.name)
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Piece]]()

        def give(number: int, piece: Piece) -> None:
            with suppress(RuntimeError):  # the loop has been closed: nobody listens any more
                loop.call_soon_threadsafe(pieces.put_nowait, (number, piece))

        answers = job.answers(give)
        self._engine.submit(answers)
        incoming = _pieces(pieces, len(answers), watch)
        done = partial(self._done, answers, watch, job)
        if streamed:
            return _Stream(_stream(incoming, shape, len(answers), usage, done), done)
        return await _whole(request, incoming, shape, len(answers), done)

    def _done(self, answers: list[Answer], watch: Watch, job: Job, outcome: str) -> None:
        """A request is over: let go of what is not finished, and count."""
        self._engine.cancel(answers)
        watch.over(outcome, job.prompt_tokens, sum(len(answer.tokens) for answer in answers))


def _wants_usage(body: CompletionRequest | ChatRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


async def _pieces(queue: asyncio.Queue[tuple[int, Piece]], choices: int, watch: Watch) -> AsyncIterator[tuple[int, Piece]]:
    """The pieces of all choices as they come, until every choice has ended.

    Raises:
        Exception: that the engine met.
    """
    while choices:
        number, piece = await queue.get()
        if piece.error is not None:
            raise piece.error
        watch.token()
        choices -= piece.finish_reason is not None
        yield number, piece


async def _whole(
    request: HttpRequest,
    incoming: AsyncIterator[tuple[int, Piece]],
    shape: Shape,
    choices: int,
    done: Callable[[str], None],
) -> Response:
    """One JSON object with all choices; nothing, and early, if the client hangs up."""
    texts: list[list[str]] = [[] for _ in range(choices)]
    tokens: list[list[Choice]] = [[] for _ in range(choices)]
    last: list[Piece] = [Piece() for _ in range(choices)]

    async def collect() -> None:
        async for number, piece in incoming:
            texts[number].append(piece.text)
            tokens[number].extend(piece.choices)
            last[number] = piece

    outcome = "error"
    collecting = asyncio.ensure_future(collect())
    try:
        while not (await asyncio.wait([collecting], timeout=HANG_UP_CHECK))[0]:
            if await request.is_disconnected():
                outcome = "hang_up"
                return Response(status_code=499)
        collecting.result()
        outcome = "ok"
    except asyncio.CancelledError:
        outcome = "hang_up"
        raise
    finally:
        collecting.cancel()
        done(outcome)
    complete = [shape.complete(i, "".join(texts[i]), tokens[i], last[i].finish_reason) for i in range(choices)]
    return JSONResponse(shape.object(complete, shape.usage(sum(piece.tokens for piece in last))))


class _Stream(StreamingResponse):
    """Server-sent events that let go of their answers also if the client hangs up before the first."""

    def __init__(self, events: AsyncIterator[str], done: Callable[[str], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._done("hang_up")  # does nothing if the stream is over


async def _stream(
    incoming: AsyncIterator[tuple[int, Piece]], shape: Shape, choices: int, usage: bool, done: Callable[[str], None]
) -> AsyncIterator[str]:
    """Server-sent events, `[DONE]` at the end."""
    outcome, total = "hang_up", 0
    try:
        for number in range(choices):
            if (opening := shape.opening(number)) is not None:
                yield _event(shape.part([opening]))
        async for number, piece in incoming:
            total += piece.tokens
            yield _event(shape.part([shape.delta(number, piece.text, piece.choices, piece.finish_reason)]))
        if usage:
            yield _event(shape.part([], shape.usage(total)))
        yield "data: [DONE]\n\n"
        outcome = "ok"
    except (GeneratorExit, asyncio.CancelledError):
        raise
    except Exception as error:
        log.error("a stream failed", exc_info=error)
        outcome = "error"
        yield _event(error_body("the answer could not be finished", "server_error"))
    finally:
        done(outcome)


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"


# --- errors -----------------------------------------------------------------------------------------------------------


def _add_errors(app: FastAPI, metrics: Metrics) -> None:
    """Every error in OpenAI's shape, with what was wrong and nothing of the server's inside."""

    def answer(body: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
        metrics.refused.labels(str(status)).inc()
        return JSONResponse(body, status, headers)

    @app.exception_handler(RequestError)
    async def refused(_request: HttpRequest, error: RequestError) -> Response:
        return answer(error_body(str(error), param=error.param, code=error.code), error.status)

    @app.exception_handler(BusyError)
    async def busy(_request: HttpRequest, error: BusyError) -> Response:
        body = error_body(str(error), "rate_limit_error", code="server_busy")
        return answer(body, 429, {"retry-after": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: HttpRequest, error: RequestValidationError) -> Response:
        found = error.errors()
        lines = [f"{_place(item['loc'])}: {item['msg']}" for item in found[:8]]
        param = _place(found[0]["loc"]) if found else None
        return answer(error_body("; ".join(lines), param=param, code="invalid_request"), 400)

    @app.exception_handler(HTTPException)
    async def failed(_request: HttpRequest, error: HTTPException) -> Response:
        return answer(error_body(str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(_request: HttpRequest, error: Exception) -> Response:
        return answer(error_body("the server met an error that it did not expect", "server_error"), 500)


def _place(loc: tuple[int | str, ...]) -> str:
    """Where in a body something is wrong, shortened."""
    return ".".join(str(part)[:64] for part in loc[:6] if part != "body") or "body"
