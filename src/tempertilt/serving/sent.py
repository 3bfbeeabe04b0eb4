"""How an answer is sent: the text of an event, and what is known of it for logs and traces."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import Message, Scope, Send


class Sent:
    """An ASGI `send` that hands messages on and remembers the answer's status; None while nothing has been sent."""

    def __init__(self, send: Send) -> None:
        self.status: int | None = None
        self._send = send

    async def __call__(self, message: Message) -> None:
        """Hand a message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def event_text(value: dict[str, Any]) -> str:
    """A server-sent event, with its name where it has a `type`. `ValueError` for numbers that JSON does not have."""
    name = f"event: {value['type']}\n" if "type" in value else ""
    return f"{name}data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"


def route_of(scope: Scope) -> str | None:
    """The endpoint's path, without what a client has put into it; None where there is no such endpoint."""
    path: str | None = getattr(scope.get("route"), "path", None)
    return path
