"""What stands before the application: the key, and errors in OpenAI's format."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tempertilt.serving.clients import Client, Pace, find_client
from tempertilt.serving.errors import error_body

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/health", "/ready")
DROPPED = 16  # times the limit of a body: what is read and dropped of a longer one
VLLM_KEY = "VLLM_API_KEY"  # where vLLM reads its key: a flag would be seen by everybody on the machine


class RequireClient:
    """ASGI middleware: only clients with a key of their own are let through, each at its pace; `/health` and `/ready` are open.

    The client's name is `scope["state"]["client"]` behind it.

    Args:
        app: what stands behind.
        clients: who may ask.
    """

    missing = "give a key of this server as  Authorization: Bearer KEY"

    def __init__(self, app: ASGIApp, clients: Sequence[Client]) -> None:
        self.app, self._clients = app, clients
        self._paces = {client.name: Pace(client.per_minute) for client in clients if client.per_minute is not None}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401, or 429 where its client asks too often."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        key = _bearer_key(scope["headers"])
        client = None if key is None else find_client(self._clients, key)
        if client is None:
            await send_json(send, 401, error_body(self.missing, code="invalid_api_key"), (b"www-authenticate", b"Bearer"))
            return
        if scope["method"] == "POST" and client.name in self._paces and (seconds := self._paces[client.name].wait()):
            message = f"{client.per_minute} requests in a minute are allowed with this key; try again in {seconds} s"
            await send_json(send, 429, error_body(message, code="rate_limit_exceeded"), (b"retry-after", b"%d" % seconds))
            return
        scope.setdefault("state", {})["client"] = client.name
        await self.app(scope, receive, send)


def _bearer_key(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """The key of the one `Authorization: Bearer KEY`; None if there is none, or another one."""
    given = [value for name, value in headers if name == b"authorization"]
    scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    return key.strip() if scheme.lower() == b"bearer" else None


class RequireKey(RequireClient):
    """The same for one key that everybody shares.

    Args:
        app: what stands behind.
        key: what `Authorization: Bearer KEY` must hold.
    """

    missing = "give the server's key as  Authorization: Bearer KEY"

    def __init__(self, app: ASGIApp, key: str) -> None:
        super().__init__(app, [Client("", key)])


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
            await send_json(send, 413, error_body(text, code="body_too_large"), *unread)
            return
        await self.app(scope, replay(bytes(body), receive), send)


def replay(body: bytes, receive: Receive) -> Receive:
    """What an application receives of a request whose body has been read: the body, then what comes."""
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return whole.pop() if whole else await receive()

    return again


async def send_json(send: Send, status: int, body: dict[str, Any], *extra: tuple[bytes, bytes]) -> None:
    """A whole answer, with `extra` headers."""
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data)), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
