"""Errors of requests, as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any

from tempertilt.errors import TemperTiltError


class RequestError(TemperTiltError):
    """A request can't be carried out.

    Args:
        message: what is wrong, and what must be.
        status: of HTTP, 4xx.
        param: the field.
        code: a short name of the error.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(printable(message))
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        return error_body(str(self), param=self.param, code=self.code)


def error_body(
    message: str, kind: str = "invalid_request_error", *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": printable(message), "type": kind, "param": param and printable(param), "code": code}}


def printable(text: str) -> str:
    """`text` with what UTF-8 can't hold written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
