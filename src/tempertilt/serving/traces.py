"""OpenTelemetry: a span for each request, with what a log has of it, never a text of a request or of an answer.

Spans go to the provider that the operator sets up, as `opentelemetry-instrument t3 serve --traces ...` does; without one they go
nowhere. Names are those of OpenTelemetry's semantic conventions for HTTP and for generative models
(opentelemetry.io/docs/specs/semconv); what these have no name for begins with `tempertilt.`.
"""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tempertilt.errors import MissingExtraError

try:
    from opentelemetry import trace
    from opentelemetry.propagate import extract
except ImportError:  # an option
    trace = None  # type: ignore[assignment]

NAMES = {
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "answer_tokens": "gen_ai.usage.output_tokens",
    "outcome": "tempertilt.outcome",
    "first_token_seconds": "tempertilt.first_token_seconds",
}
"""Facts of a request, and their names in a span."""


def require_traces() -> None:
    """`MissingExtraError` if the package opentelemetry-api is not installed."""
    if trace is None:
        raise MissingExtraError("opentelemetry-api", "traces", "--traces")


class TraceRequests:
    """ASGI middleware: a span for each request, a child of the one that the client names in `traceparent`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self._tracer = app, trace.get_tracer("tempertilt")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on within its span, which ends when the answer has been sent or its client has disconnected."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        kind = trace.SpanKind.SERVER
        with self._tracer.start_as_current_span(
            scope["method"],
            context=extract(carrier),
            kind=kind,
            record_exception=False,  # its message may hold a text
            set_status_on_exception=False,
        ) as span:
            status: int | None = None

            async def watched(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await self.app(scope, receive, watched)
            except Exception as error:
                status = 500  # which is sent outside of all middleware
                span.set_attribute("error.type", type(error).__name__)
                raise
            finally:
                for name, value in _attributes(scope, status).items():
                    span.set_attribute(name, value)
                if (route := _route(scope)) is not None:
                    span.update_name(f"{scope['method']} {route}")
                if status is not None and status >= 500:
                    span.set_status(trace.StatusCode.ERROR)


def _route(scope: Scope) -> str | None:
    """The endpoint's path, without what a client has put into it."""
    path: str | None = getattr(scope.get("route"), "path", None)
    return path


def _attributes(scope: Scope, status: int | None) -> dict[str, Any]:
    state = scope.get("state", {})
    watch = state.get("watch")
    facts = {} if watch is None else watch.facts
    found = {
        "http.request.method": scope["method"],
        "http.route": _route(scope),
        "http.response.status_code": status,
        "tempertilt.request_id": state.get("request_id"),
        **{name: facts.get(fact) for fact, name in NAMES.items()},
    }
    return {name: value for name, value in found.items() if value is not None}
