"""What stands before vLLM's application where it serves several models: the model that a request names reaches the engine.

vLLM takes all served names for one model, and hands no name on. So the name is written among the request's extra arguments, over
whatever the client may have put there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tempertilt.integrations.vllm.options import KEY
from tempertilt.serving.errors import error_body
from tempertilt.serving.guards import replay, send_json

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

EXTRA = "vllm_xargs"  # vLLM's own field of extra arguments
SAMPLING = "sampling_params"  # on routes that take sampling parameters as vLLM has them
MISSING = "model is missing; must be one of those that /v1/models lists"
ASKS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")


class NameModel:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, its model among its extra arguments; 400 where it asks for an answer and names no model."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
        named, content = name_model(bytes(body))
        if not named and scope["path"].rstrip("/") in ASKS:
            await send_json(send, 400, error_body(MISSING, param="model"))
            return
        length = (b"content-length", b"%d" % len(content))
        headers = [length if name == b"content-length" else (name, value) for name, value in scope["headers"]]
        await self.app({**scope, "headers": headers}, replay(content, receive), send)


def name_model(body: bytes) -> tuple[bool, bytes]:
    """Whether a request's body names a model, and the body with that name among its extra arguments.

    A body that is no JSON object stays as it is, for vLLM to refuse.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return True, body
    if not isinstance(request, dict):
        return True, body
    name = request.get("model")
    named = isinstance(name, str) and bool(name)
    _write(request, EXTRA, name if named else None)
    if isinstance(sampling := request.get(SAMPLING), dict):
        _write(sampling, "extra_args", name if named else None)
    return named, json.dumps(request).encode()


def _write(request: dict[str, Any], field: str, name: str | None) -> None:
    given = request.get(field)
    extra = {key: value for key, value in given.items() if key != KEY} if isinstance(given, dict) else {}
    if name is not None:
        request[field] = {**extra, KEY: name}
    elif isinstance(given, dict):
        request[field] = extra
