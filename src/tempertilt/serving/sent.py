"""What is known of an answer as it is sent: for logs and traces."""

from __future__ import annotations

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


def route_of(scope: Scope) -> str | None:
    """The endpoint's path, without what a client has put into it; None where there is no such endpoint."""
    path: str | None = getattr(scope.get("route"), "path", None)
    return path
