"""Logs as JSON: one object a line, one line for each request, never a text of a request or of an answer."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from datetime import datetime, timezone
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from tempertilt.serving.sent import Sent, route_of

OURS = "tempertilt"  # the loggers whose messages hold no text of a request
CLIENT_CLOSED = 499  # nothing was sent

requests_log = logging.getLogger("tempertilt.requests")


class JsonFormatter(logging.Formatter):
    """A record as one JSON object.

    What could hold a text is left out: messages of other packages and of exceptions. In their place stand the line of code and
    the exception's class.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        place = f"{record.filename}:{record.lineno}"
        ours = record.name.split(".")[0] == OURS
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() if ours else place,
        }
        if record.exc_info and record.exc_info[0] is not None:
            calls = traceback.extract_tb(record.exc_info[2])
            line["error"] = record.exc_info[0].__name__
            line["calls"] = [f"{call.filename}:{call.lineno} {call.name}" for call in calls]
        return json.dumps(line | getattr(record, "facts", {}), ensure_ascii=False)


def log_as_json() -> None:
    """From now on every logger that this process has, and Python's warnings, write JSON to stderr; requests are logged."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):  # transformers and huggingface_hub write by handlers of their own
            logger.handlers, logger.propagate = [], True
    logging.captureWarnings(True)
    requests_log.setLevel(logging.INFO)


class LogRequests:
    """ASGI middleware: a line for each request, when its answer has been sent or its client has disconnected."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and log it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, sent = time.perf_counter(), Sent(send)
        try:
            await self.app(scope, receive, sent)
        except Exception:
            sent.status = 500  # which is sent outside of all middleware
            raise
        finally:
            facts = _facts(scope, sent.status or CLIENT_CLOSED, time.perf_counter() - started)
            requests_log.info("request", extra={"facts": facts})


def _facts(scope: Scope, status: int, seconds: float) -> dict[str, Any]:
    """What is logged of a request."""
    state = scope.get("state", {})
    watch = state.get("watch")
    return {
        "request_id": state.get("request_id"),
        "method": scope["method"],
        "path": route_of(scope),
        "status": status,
        "seconds": round(seconds, 4),
        **({} if watch is None else watch.facts),
    }
