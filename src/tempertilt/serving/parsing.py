"""From the bytes of a request to its fields, or to one sentence about what is wrong with them."""

from __future__ import annotations

import difflib
import json
import typing
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from tempertilt.serving.errors import RequestError
from tempertilt.serving.schema import Sampled

AnyRequest = TypeVar("AnyRequest", bound=Sampled)
SHOWN = 60  # characters of a wrong value in a message


def parse_request(kind: type[AnyRequest], data: bytes, content_type: str) -> AnyRequest:
    """The fields of a request from its body.

    Raises:
        RequestError: 415 without the header for JSON, 400 if the body is no JSON or a field is wrong.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":  # a web page may send others unasked
        text = f"the header Content-Type is {_show(content_type)}; must be application/json"
        raise RequestError(f"{text} (curl -H 'Content-Type: application/json')", status=415)
    value = _parse_json(data)
    if b"\\ud" in data.lower():
        _check_characters(value)
    if not isinstance(value, dict):
        raise RequestError(f"the body is {_show(value)}; must be a JSON object")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _explain(kind, value, error.errors(include_url=False)) from error


def _parse_json(data: bytes) -> Any:
    """The value of a JSON text; `RequestError` if there is none, or an object has a key twice."""
    if not data.strip():
        raise RequestError("the body is empty; must be a JSON object")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error.msg.removesuffix(' at')} at character {error.pos}") from error
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise RequestError("the body holds a number of too many digits; must be a number of JSON") from error


def _check_characters(value: Any) -> None:
    """`RequestError` if a text holds half a surrogate pair: JSON can name it, UTF-8 can't hold it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError("a text of the body holds half of a surrogate pair; must be Unicode text") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"the body has the key {_show(twice)} twice in one object", param=twice[:SHOWN])
    return value


def _no_number(text: str) -> Any:
    raise RequestError(f"the body holds {text}, which is no JSON number")


def _explain(kind: type[Sampled], value: Any, errors: Any) -> RequestError:
    """The first wrong field, its value, and what it must be."""
    of_field = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
    path, error = max(((_walk(kind, value, error["loc"]), error) for error in of_field), key=_depth)
    place = ".".join(path.names)
    if error["loc"][-1] not in path.inner.model_fields and error["type"] == "none_required":
        name = str(error["loc"][-1])[:SHOWN]
        close = difflib.get_close_matches(name, path.inner.model_fields, 1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        place = ".".join([*path.names, name])
        message = f"{place}: this server has no such field{guess}; {kind.supported}"
        return RequestError(message, param=place, code="invalid_request")
    seen = "missing" if error["type"] == "missing" else _show(path.value)
    return RequestError(f"{place} is {seen}; must be {path.description}", param=place, code="invalid_request")


def _depth(pair: tuple[_Path, Any]) -> tuple[int, int]:
    """How far into the body an error is: of those of a union's types the farthest says most."""
    path, error = pair
    return len(path.names), len(error["loc"])


class _Path(NamedTuple):
    """Fields on the way to an error; the value of the last, what it must be, and the type of the objects that it holds."""

    names: tuple[str, ...]
    value: Any
    description: str
    inner: type[BaseModel]


def _walk(kind: type[BaseModel], value: Any, loc: tuple[int | str, ...]) -> _Path:
    """The fields that a validator's place names, without its own marks of unions and lists."""
    path = _Path((), value, "", kind)
    for part in loc:
        if isinstance(part, int) and path.inner is not kind and isinstance(path.value, list):
            path = path._replace(names=(*path.names[:-1], f"{path.names[-1]}[{part}]"), value=path.value[part])
        elif part in path.inner.model_fields:
            field, holder = path.inner.model_fields[str(part)], path.value if isinstance(path.value, dict) else {}
            inner = _inner_type(field.annotation) or path.inner
            path = _Path((*path.names, str(part)), holder.get(part), field.description or "", inner)
    return path


def _inner_type(annotation: Any) -> type[BaseModel] | None:
    """The type of the objects that a field holds, alone or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((inner for part in typing.get_args(annotation) if (inner := _inner_type(part))), None)


def _show(value: Any) -> str:
    """A value as JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
