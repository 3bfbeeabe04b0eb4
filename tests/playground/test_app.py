"""The page's settings and its server, without Gradio."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tempertilt.data.examples import ExampleConfig
from tempertilt.errors import ConfigError
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.playground import app
from tempertilt.serving.sockets import LOOPBACK

TILT = TiltConfig(2.0, 1.5)


def test_presets_switch_off_one_part_each() -> None:
    settings = [(tilt.temperature, tilt.guidance_scale) for tilt in app.presets(TILT).values()]
    assert settings == [(2.0, 1.5), (2.0, 0.0), (1.0, 1.5), (1.0, 0.0)]


@pytest.mark.parametrize("value", [None, "x", float("nan"), -1, 2.0**40, True])
def test_numbers_that_are_none(value: Any) -> None:
    with pytest.raises(ConfigError, match="must be"):
        app._whole(value)


def test_prompts_that_can_not_be_answered(tokenizer: Any) -> None:
    playground = app.Playground(None, tokenizer, ExampleConfig())  # type: ignore[arg-type]
    for prompt, message in ((" \n", "there is no prompt"), ("a" * 20_001, "20001 characters; must be at most 20000")):
        with pytest.raises(ConfigError, match=message):
            playground.encode(prompt, False)
    assert playground.encode("Who?", True) == tokenizer("Who?").input_ids != playground.encode("Who?", False)


def test_long_questions_are_cut_to_one_line() -> None:
    assert app.shortened("Who\n is   it?") == "Who is it?"
    cut = app.shortened("word " * 50)
    assert len(cut) <= 110 and cut.endswith("word…")


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("127.0.0.1:7860", "/", 200), ("localhost:7860", "/", 200), ("[::1]:7860", "/", 200), ("evil.example:7860", "/", 400),
        ("", "/", 400), ("127.0.0.1", "/gradio_api/upload", 403), ("127.0.0.1", "/gradio_api/queue/join", 200),
    ],
)  # fmt: skip
def test_the_shield(host: str, path: str, status: int) -> None:
    async def inner(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [(b"host", host.encode())]}
    asyncio.run(app.Shield(inner, LOOPBACK)(scope, None, send))
    assert sent[0]["status"] == status
    if status == 200:
        assert "default-src 'self'" in dict(sent[0]["headers"])[b"content-security-policy"].decode()
