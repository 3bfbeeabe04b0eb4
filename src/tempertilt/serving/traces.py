"""OpenTelemetry: a span for each request, with what a log has of it, never a text of a request or of an answer.

Spans go to the provider that the operator sets up, as `opentelemetry-instrument t3 serve --traces ...` does; without one they go
nowhere. Names are those of OpenTelemetry's semantic conventions for HTTP and for generative models
(opentelemetry.io/docs/specs/semconv); what these have no name for begins with `tempertilt.`.
"""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from tempertilt.errors import MissingExtraError
from tempertilt.serving.sent import Sent, route_of

try:
    from opentelemetry import trace
    from opentelemetry.propagate import extract
except ImportError as error:
    raise MissingExtraError("opentelemetry-api", "traces", "--traces") from error

NAMES = {
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "answer_tokens": "gen_ai.usage.output_tokens",
    "outcome": "tempertilt.outcome",
    "first_token_seconds": "tempertilt.first_token_seconds",
}
"""Facts of a request, and their names in a span."""


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
        with self._tracer.start_as_current_span(
            scope["method"],
            context=extract(carrier),
            kind=trace.SpanKind.SERVER,
            record_exception=False,  # its message may hold a text
            set_status_on_exception=False,
        ) as span:
            sent = Sent(send)
            try:
                await self.app(scope, receive, sent)
            except Exception as error:
                sent.status = 500  # which is sent outside of all middleware
                span.set_attribute("error.type", type(error).__name__)
                raise
            finally:
                span.set_attributes(_attributes(scope, sent.status))
                if (route := route_of(scope)) is not None:
                    span.update_name(f"{scope['method']} {route}")
                if sent.status is not None and sent.status >= 500:
                    span.set_status(trace.StatusCode.ERROR)


def _attributes(scope: Scope, status: int | None) -> dict[str, Any]:
    """By their names in a span; what is not known is left out."""
    state = scope.get("state", {})
    watch = state.get("watch")
    facts = {} if watch is None else watch.facts
    found = {
        "http.request.method": scope["method"],
        "http.route": route_of(scope),
        "http.response.status_code": status,
        "tempertilt.request_id": state.get("request_id"),
        **{name: facts.get(fact) for fact, name in NAMES.items()},
    }
    return {name: value for name, value in found.items() if value is not None}
