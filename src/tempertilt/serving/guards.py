"""What stands before the application: the key, and errors in OpenAI's format."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tempertilt.serving.errors import error_body

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/health", "/ready")
DROPPED = 16  # times the limit of a body: what is read and dropped of a longer one
VLLM_KEY = "VLLM_API_KEY"  # where vLLM reads its key: a flag would be seen by everybody on the machine


class RequireKey:
    """ASGI middleware: without the key, nothing but `/health` and `/ready` answers.

    Args:
        app: what stands behind.
        key: what `Authorization: Bearer KEY` must hold.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] == "http" and scope["path"] not in OPEN and not self._has_key(scope["headers"]):
            message = "give the server's key as  Authorization: Bearer KEY"
            await _send(send, 401, error_body(message, code="invalid_api_key"), (b"www-authenticate", b"Bearer"))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.app(scope, receive, send)

    def _has_key(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)


class RequireKeyOfEnvironment(RequireKey):
    """The same for vLLM, which makes its middleware from an import path: the key is the environment's."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, os.environ[VLLM_KEY])


class LimitBody:
    """ASGI middleware: reads a request's body, at most `limit` bytes of it; a longer one gets status 413.

    What is too much is read and dropped, up to a point: a client that is cut off while it sends does not see the answer.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its whole body, or answer 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, size, more = bytearray(), 0, True
        while more and size <= DROPPED * self._limit:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= self._limit:
                body += part
        if size > self._limit:
            text = f"the body has more than {self._limit} bytes; must have at most as many"
            unread = [(b"connection", b"close")] if more else []
            await _send(send, 413, error_body(text, code="body_too_large"), *unread)
            return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)


async def _send(send: Send, status: int, body: dict[str, Any], *extra: tuple[bytes, bytes]) -> None:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data)), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
