"""The application: OpenAI's endpoints for served models, a health check, and metrics."""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tempertilt.requests.ledger import VERSION_HEADER
from tempertilt.serving.clients import read_clients
from tempertilt.serving.config import ServeConfig
from tempertilt.serving.delivery import Delivery, EventStream
from tempertilt.serving.engine import BusyError, Engine
from tempertilt.serving.errors import RequestError, error_body
from tempertilt.serving.events import ResponsesWriter
from tempertilt.serving.guards import LimitBody, RequireClient, RequireKey
from tempertilt.serving.logs import LogRequests
from tempertilt.serving.metrics import Metrics, Watch
from tempertilt.serving.models import ServedModel
from tempertilt.serving.parsing import parse_request
from tempertilt.serving.requests import Job, find_model, prepare_chat, prepare_completion, prepare_responses
from tempertilt.serving.responses import ChatWriter, CompletionWriter, Writer
from tempertilt.serving.schema import PLAIN_TEXT, ChatRequest, CompletionRequest, ResponsesRequest, Sampled

Body = TypeVar("Body", bound=Sampled)
REQUEST_ID = "x-request-id"
SCHEMAS = "#/components/schemas/{model}"


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """Every refusal and failure of a request."""

    error: ErrorDetail


class Status(BaseModel):
    """What /health and /ready answer."""

    status: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 405, 413, 415, 429, 500)
}
STATUSES: dict[int | str, dict[str, Any]] = {status: {"model": Status} for status in (200, 503)}


def build_app(models: Mapping[str, ServedModel], config: ServeConfig) -> FastAPI:
    """The application; its engine, which runs, is `app.state.engine`.

    Args:
        models: by name; looked up anew for each request, so that what is behind a name may change.
        config: key and limits.
    """
    os.environ["FASTAPI_OTEL_AUTO_CONFIGURE"] = "false"  # no telemetry
    engine = Engine(max_batch_size=config.max_batch_size, max_waiting=config.max_waiting, prefix_tokens=config.prefix_tokens)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.stop)  # the server has finished its answers

    about = "OpenAI-compatible server of unlearned models"
    app = FastAPI(title="tempertilt", description=about, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.engine, app.state.metrics = engine, Metrics(engine)
    _add_endpoints(app, Endpoints(models, config, engine, app.state.metrics))
    _add_schemas(app)
    _add_errors(app, app.state.metrics)
    app.add_middleware(LimitBody, limit=config.max_body_bytes)
    if config.api_key:
        app.add_middleware(RequireKey, key=config.api_key)
    if config.api_keys:
        app.add_middleware(RequireClient, clients=read_clients(Path(config.api_keys)))
    if config.log_format == "json":
        app.add_middleware(LogRequests)
    if config.traces:
        from tempertilt.serving.traces import TraceRequests  # an extra package

        app.add_middleware(TraceRequests)
    app.add_middleware(AddRequestId)
    if config.allow_origin:
        allowed = {"allow_origins": config.allow_origin, "allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        app.add_middleware(CORSMiddleware, **allowed, expose_headers=[REQUEST_ID, VERSION_HEADER])  # type: ignore[arg-type]
    return app


class Endpoints:
    """What the endpoints answer."""

    def __init__(self, models: Mapping[str, ServedModel], config: ServeConfig, engine: Engine, metrics: Metrics) -> None:
        self._models, self._config, self._engine, self._metrics = models, config, engine, metrics

    async def completion(self, request: Request) -> Response:
        """`/v1/completions`."""
        body = await self._read(request, CompletionRequest)
        job = await asyncio.to_thread(prepare_completion, body, self._models, self._config)
        return await self._answer(request, body, job, CompletionWriter(job, request.state.request_id, body.wants_usage))

    async def chat(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        body = await self._read(request, ChatRequest)
        job = await asyncio.to_thread(prepare_chat, body, self._models, self._config)
        return await self._answer(request, body, job, ChatWriter(job, request.state.request_id, body.wants_usage))

    async def responses(self, request: Request) -> Response:
        """`/v1/responses`."""
        body = await self._read(request, ResponsesRequest)
        job = await asyncio.to_thread(prepare_responses, body, self._models, self._config)
        return await self._answer(request, body, job, ResponsesWriter(job, request.state.request_id, body))

    @staticmethod
    def stored_response() -> Response:
        """`/v1/responses/...`: refused."""
        raise RequestError(f"this server stores no responses; {PLAIN_TEXT}", status=404)

    @staticmethod
    async def _read(request: Request, kind: type[Body]) -> Body:
        data, content_type = await request.body(), request.headers.get("content-type", "")
        return await asyncio.to_thread(parse_request, kind, data, content_type)

    async def _answer(self, request: Request, body: Sampled, job: Job, writer: Writer) -> Response:
        watch = Watch(self._metrics, request.url.path.removeprefix("/v1/"), job.model.name)
        request.state.watch = watch
        lag = self._config.stream_lag if body.stream else None
        delivery = Delivery(job, self._engine, watch, lag, client=getattr(request.state, "client", ""))
        response = EventStream(delivery, writer) if body.stream else await delivery.whole(request, writer)
        if job.model.version is not None:
            response.headers[VERSION_HEADER] = job.model.version
        return response

    def models(self) -> Response:
        """`/v1/models`."""
        return JSONResponse({"object": "list", "data": [describe(model) for model in self._models.values()]})

    def model(self, name: str) -> Response:
        """`/v1/models/NAME`."""
        return JSONResponse(describe(find_model(name, self._models)))

    def health(self) -> Response:
        """`/health`: 503 if the engine has died."""
        alive = self._engine.is_alive()
        return JSONResponse({"status": "ok" if alive else "the engine has ended"}, 200 if alive else 503)

    def ready(self) -> Response:
        """`/ready`: 503 if a request for one more answer would be refused."""
        ready = self._engine.has_room()
        return JSONResponse({"status": "ok" if ready else "takes no more answers now"}, 200 if ready else 503)

    def metrics(self) -> Response:
        """`/metrics`."""
        return Response(self._metrics.text(), media_type=Metrics.content_type)


def describe(model: ServedModel) -> dict[str, Any]:
    """OpenAI's description of a model; it does not name directories."""
    facts = {"id": model.name, "object": "model", "created": model.created, "owned_by": "tempertilt"}
    version = {} if model.version is None else {"unlearning_version": model.version}
    return facts | {"max_model_len": model.max_model_len} | version


def _add_endpoints(app: FastAPI, endpoints: Endpoints) -> None:
    posts: tuple[tuple[str, Any, type[Sampled]], ...] = (
        ("/v1/completions", endpoints.completion, CompletionRequest),
        ("/v1/chat/completions", endpoints.chat, ChatRequest),
        ("/v1/responses", endpoints.responses, ResponsesRequest),
    )
    for path, endpoint, kind in posts:
        content = {"application/json": {"schema": {"$ref": SCHEMAS.format(model=kind.__name__)}}}
        body = {"requestBody": {"required": True, "content": content}}
        app.add_api_route(path, endpoint, methods=["POST"], response_model=None, responses=ERRORS, openapi_extra=body)
    every = ["GET", "POST", "DELETE"]
    app.add_api_route("/v1/responses/{rest:path}", endpoints.stored_response, methods=every, include_in_schema=False)
    gets: tuple[tuple[str, Any, dict[int | str, dict[str, Any]]], ...] = (
        ("/v1/models", endpoints.models, ERRORS),
        ("/v1/models/{name}", endpoints.model, ERRORS),
        ("/health", endpoints.health, ERRORS | STATUSES),
        ("/ready", endpoints.ready, ERRORS | STATUSES),
    )
    for path, get, responses in gets:
        app.add_api_route(path, get, response_model=None, responses=responses)
    app.add_api_route("/metrics", endpoints.metrics, response_class=Response, responses=ERRORS)


def _add_schemas(app: FastAPI) -> None:
    """Put the requests' fields into /openapi.json, which FastAPI does not know because the bodies are parsed here."""
    document = app.openapi()
    kinds: list[tuple[type[BaseModel], Any]] = [
        (kind, "validation") for kind in (ChatRequest, CompletionRequest, ResponsesRequest)
    ]
    schemas = models_json_schema(kinds, ref_template=SCHEMAS)[1]
    document["components"]["schemas"] |= schemas["$defs"]


# --- request ids ----------------------------------------------------------------------------------------------------------


class AddRequestId:
    """ASGI middleware: every answer has an id in its header, the client's own if it is one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add the header to its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(REQUEST_ID.encode(), b"").decode("latin-1")
        name = given if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = name
            await send(message)

        await self.app(scope, receive, send_with_id)


# --- errors -----------------------------------------------------------------------------------------------------------


def _add_errors(app: FastAPI, metrics: Metrics) -> None:
    """Every error in OpenAI's format, with what was wrong and nothing of the server's inside."""

    def answer(body: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
        metrics.refused.labels(str(status)).inc()
        return JSONResponse(body, status, headers)

    @app.exception_handler(RequestError)
    async def refused(_request: Request, error: RequestError) -> Response:
        return answer(error.body, error.status)

    @app.exception_handler(BusyError)
    async def busy(_request: Request, error: BusyError) -> Response:
        return answer(error_body(str(error), "rate_limit_error", code="server_busy"), 429, {"retry-after": "1"})

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        text = f"{request.method} {request.url.path}: {error.detail}"
        return answer(error_body(text), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(_request: Request, _error: Exception) -> Response:
        return answer(error_body("the server met an error that it did not expect", "server_error"), 500)
