"""What stands before the application: the key, and errors in OpenAI's shape."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN = ("/health",)
VLLM_KEY = "VLLM_API_KEY"  # where vLLM reads its key: a flag would be seen by everybody on the machine


def error_body(
    message: str, kind: str = "invalid_request_error", *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": printable(message), "type": kind, "param": param and printable(param), "code": code}}


def printable(text: str) -> str:
    """`text` with what UTF-8 can't hold written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class RequireKey:
    """ASGI middleware: without the key, nothing but `/health` answers.

    Args:
        app: what stands behind.
        key: what `Authorization: Bearer KEY` must hold.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] == "http" and scope["path"] not in OPEN and not self._has_key(scope["headers"]):
            await _refuse(send)
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


async def _refuse(send: Send) -> None:
    body = json.dumps(error_body("give the server's key as  Authorization: Bearer KEY", code="invalid_api_key")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
