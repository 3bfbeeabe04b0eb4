"""JSON logs: a line for each request, and no text in any line."""

from __future__ import annotations

import http.client
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import transformers

openai = pytest.importorskip("openai")

from support.servers import KEY, Running, adapters, serving, wait_until  # noqa: E402, F401
from tempertilt.serving import batch  # noqa: E402
from tempertilt.serving.logs import JsonFormatter, log_as_json  # noqa: E402

SECRET = "secretword"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that gives what has been logged as JSON; logging is as before at the end."""
    stream, root, ours = io.StringIO(), logging.getLogger(), logging.getLogger("tempertilt.requests")
    handlers, level = root.handlers[:], root.level
    others = [logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    states = [(logger, logger.handlers, logger.propagate) for logger in others]
    monkeypatch.setattr(sys, "stderr", stream)
    root.handlers = []
    log_as_json()
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)
    for logger, own, propagate in states:
        logger.handlers, logger.propagate = own, propagate
    ours.setLevel(logging.NOTSET)


def test_every_request_has_a_line_without_text(lines: Any, adapters: dict[str, str]) -> None:
    with serving(adapters, log_format="json") as running:
        client = running.client(default_headers={"x-request-id": "mine-1"})
        answer = client.completions.create(model="first", prompt=SECRET, max_tokens=5, logit_bias={"2": -100})
        list(
            client.chat.completions.create(
                model="second", messages=[{"role": "user", "content": SECRET}], stream=True, max_tokens=3
            )
        )
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model=SECRET, prompt=SECRET)
        connection = http.client.HTTPConnection(running.url.removeprefix("http://"))
        connection.request("GET", f"/v1/models/{SECRET}", headers={"authorization": f"Bearer {KEY}"})
        connection.getresponse().read()
        wait_until(lambda: len(lines()) == 4)
    first, second, third, fourth = lines()
    assert {name: first[name] for name in ("logger", "message", "request_id", "method", "path", "status")} == {
        "logger": "tempertilt.requests",
        "message": "request",
        "request_id": "mine-1",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
    }
    assert first["model"] == "first" and first["outcome"] == "ok" and first["answer_tokens"] == 5
    assert first["prompt_tokens"] == answer.usage.prompt_tokens and 0 < first["first_token_seconds"] <= first["seconds"]
    assert second["model"] == "second" and second["outcome"] == "ok" and second["path"] == "/v1/chat/completions"
    assert third["status"] == 404 and "model" not in third and fourth["path"] == "/v1/models/{name}"
    assert SECRET not in json.dumps(lines())


def test_a_client_that_disconnects_is_logged(lines: Any, adapters: dict[str, str]) -> None:
    with serving(adapters, log_format="json") as running:
        options = {"model": "first", "prompt": "a", "max_tokens": 250, "logit_bias": {"2": -100}}
        stream = running.client().completions.create(**options, stream=True)
        next(iter(stream))
        stream.close()
        wait_until(lambda: bool(lines()))
    assert lines()[0]["outcome"] == "disconnected" and lines()[0]["answer_tokens"] < 250


def test_an_error_is_logged_without_its_message(
    lines: Any,
    adapters: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError(f"cannot read {SECRET}")

    with serving(adapters, log_format="json") as running:
        monkeypatch.setattr(batch.Batch, "step", broken)
        with pytest.raises(openai.InternalServerError):
            running.client().completions.create(model="first", prompt=SECRET, max_tokens=2)
        wait_until(lambda: any(line["logger"] == "tempertilt.requests" for line in lines()))
    failed = [line for line in lines() if line["message"] == "decoding failed"]
    assert failed[0]["error"] == "ValueError" and any("broken" in call for call in failed[0]["calls"])
    request = next(line for line in lines() if line["logger"] == "tempertilt.requests")
    assert request["status"] == 500 and request["outcome"] == "error" and SECRET not in json.dumps(lines())


def test_messages_of_other_packages_are_left_out() -> None:
    record = logging.LogRecord("elsewhere", logging.WARNING, "/a/b.py", 7, f"got {SECRET}", (), None)
    assert json.loads(JsonFormatter().format(record))["message"] == "b.py:7"
    ours = logging.LogRecord("tempertilt.x", logging.WARNING, "/a/b.py", 7, "version %d", (3,), None)
    assert json.loads(JsonFormatter().format(ours))["message"] == "version 3"


def test_libraries_with_handlers_of_their_own_and_warnings_write_json(lines: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """transformers' own handler would write the text, and no JSON."""
    transformers.utils.logging.get_logger("transformers.tokenization").error("got %s", SECRET)
    warnings.warn(f"got {SECRET}", UserWarning, stacklevel=1)
    assert [line["logger"] for line in lines()] == ["transformers.tokenization", "py.warnings"]
    assert SECRET not in json.dumps(lines()) + capfd.readouterr().err
