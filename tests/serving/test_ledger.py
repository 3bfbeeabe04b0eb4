"""A server whose model has the parts of a ledger, while requests come and go."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

import tempertilt.requests.ledger as ledger_module
import tempertilt.serving.ledger as module
from support.ledger_parts import PROMPTS, Place, greedy, make_place
from support.servers import KEY, Running, serving_models, wait_until
from tempertilt.errors import LedgerError
from tempertilt.serving.config import ServeConfig
from tempertilt.serving.ledger import LedgerModels, load_ledger_models

LENGTH = 12


@pytest.fixture()
def place(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("TEMPERTILT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "POLL", 0.02)
    return make_place(tmp_path / "place", tiny_dir)


@contextmanager
def serving(place: Place, scope: dict[str, str] | None = None, **options: Any) -> Iterator[tuple[Running, LedgerModels]]:
    config = ServeConfig(**{"port": 0, "api_key": KEY, **options})
    models = load_ledger_models("mine", str(place.ledger.directory), scope or {}, config, device="cpu")
    with models, serving_models(models, config) as running:
        yield running, models


def call(running: Running, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any, str]:
    """Status, headers and body of an answer."""
    connection = HTTPConnection(running.url.removeprefix("http://"), timeout=60)
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, response.headers, text


def ask(running: Running, prompt: str = PROMPTS[0], stream: bool = False) -> tuple[str, str]:
    """The version in the answer's header, and its text."""
    body = {"model": "mine", "prompt": prompt, "max_tokens": LENGTH, "temperature": 0, "stream": stream}
    status, headers, text = call(running, "/v1/completions", body)
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert status == 200 and (lines.pop() == "[DONE]" if stream else len(lines) == 1), text
    return headers["x-unlearning-version"], "".join(choice["text"] for line in lines for choice in json.loads(line)["choices"])


def expected(place: Place, names: str, prompt: str = PROMPTS[0]) -> str:
    return greedy(place.alone(*names), place.base.tokenizer, prompt, LENGTH)


def shown(running: Running) -> dict[str, str | None]:
    """The versions of the models by name."""
    models = json.loads(call(running, "/v1/models")[2])["data"]
    return {model["id"]: model.get("unlearning_version") for model in models}


def test_changes_are_taken_up_without_a_restart(place: Place) -> None:
    with serving(place) as (running, _):
        seen = [expected(place, "")]
        assert ask(running) == (place.ledger.version, seen[0]) and shown(running)["mine"] == place.ledger.version
        for change, names in (("+a", "a"), ("+b", "ab"), ("+c", "abc"), ("-a", "bc"), ("-b", "c")):
            version = place.add(change[1]) if change[0] == "+" else place.revoke(change[1])
            wait_until(lambda version=version: shown(running)["mine"] == version)
            seen.append(expected(place, names))
            for stream in (False, True):
                assert ask(running, stream=stream) == (version, seen[-1])
        assert len(set(seen)) > 3


def test_an_answer_ends_with_what_it_began_with(place: Place) -> None:
    place.add("a")
    with serving(place) as (running, models):
        options = {"model": "mine", "prompt": PROMPTS[0], "max_tokens": 150, "temperature": 0, "stream": True}
        stream = running.client().completions.create(**options)
        text = next(iter(stream)).choices[0].text
        version = place.revoke("a")
        wait_until(lambda: models["mine"].version == version)
        assert ask(running) == (version, expected(place, ""))
        text += "".join(part.choices[0].text for part in stream)
        assert text == greedy(place.alone("a"), place.base.tokenizer, PROMPTS[0], 150)
        assert text != greedy(place.alone(), place.base.tokenizer, PROMPTS[0], 150)


def test_parts_for_other_places_do_not_act(place: Place) -> None:
    place.add("a", tenant="acme")
    place.add("b", tenant="other")
    with serving(place, {"tenant": "acme"}) as (running, models):
        assert ask(running)[1] == expected(place, "a")
        before = models["mine"]
        version = place.add("c", tenant="other")
        wait_until(lambda: models["mine"].version == version)
        assert models["mine"].decoder is before.decoder  # the same parts: answers go on in one batch
        assert ask(running) == (version, expected(place, "a"))


def test_an_expired_part_stops_acting(place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """At the next request's start, also where nobody looks at the files."""

    class Clock(datetime):
        day = 1

        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime(2027, 2, cls.day, 12, tzinfo=tz or timezone.utc)

    monkeypatch.setattr(module, "datetime", Clock)
    monkeypatch.setattr(ledger_module, "datetime", Clock)
    monkeypatch.setattr(module, "POLL", 100.0)
    place.add("a", expires="2027-02-01")
    with serving(place) as (running, _), caplog.at_level(logging.WARNING, "tempertilt"):
        before = ask(running)
        assert before[1] == expected(place, "a")
        Clock.day = 2
        assert ask(running) == (before[0], expected(place, "")) != before
    assert "expired" in caplog.text or "last day" in caplog.text


def test_what_can_not_be_read_leaves_the_parts_that_act(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.add("a")
    with serving(place) as (running, models):
        version = models["mine"].version
        file = place.ledger.part("b") / "adapter_model.safetensors"
        (place.adapters["b"] / file.name).write_bytes(b"damaged")
        place.add("b")
        wait_until(lambda: f"version {version} is served on" in caplog.text)
        assert ask(running) == (version, expected(place, "a"))
        wait_until(lambda: caplog.text.count("is served on") == 1)  # said once
        models.refresh()
        assert caplog.text.count("is served on") == 1
        place.revoke("b")
        wait_until(lambda: models["mine"].version == place.ledger.version)


def test_the_base_beside_it_and_what_is_refused(place: Place, tmp_path: Path, tiny_dir: Path) -> None:
    place.add("a")
    with serving(place, serve_base=True) as (running, _):
        assert shown(running) == {"mine": place.ledger.version, "base": None}
        status, headers, text = call(running, "/v1/completions", {"model": "mine", "prompt": "x", "guidance_scale": 2})
        assert status == 400 and "no tilt" in text and headers["x-unlearning-version"] is None
    config = ServeConfig(port=0)
    place.base.model.base_model.embed_tokens.weight.data += 1
    place.base.model.save_pretrained(tmp_path / "other")
    place.base.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(LedgerError, match="the ledger was made for"):
        load_ledger_models("mine", str(place.ledger.directory), {}, config, model=str(tmp_path / "other"), device="cpu")


@pytest.mark.integration
def test_streaming_clients_while_parts_come_and_go(place: Place) -> None:
    """No error, and each answer is whole one of the version in its header."""
    parts = {place.add("a"): "a"}
    answers: list[tuple[str, str, str]] = []
    errors: list[BaseException] = []
    ending = threading.Event()

    def client(running: Running, number: int) -> None:
        try:
            while not ending.is_set():
                prompt = PROMPTS[number % len(PROMPTS)]
                answers.append((prompt, *ask(running, prompt, stream=True)))
                number += 1
        except BaseException as error:
            errors.append(error)

    def more(count: int) -> bool:
        return bool(errors) or len(answers) >= count

    with serving(place) as (running, models):
        threads = [threading.Thread(target=client, args=(running, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for change, names in (("+b", "ab"), ("-a", "b"), ("+c", "bc"), ("+d", "bcd"), ("-c", "bd")):
            wait_until(partial(more, len(answers) + 8))
            version = place.add(change[1]) if change[0] == "+" else place.revoke(change[1])
            parts[version] = names
            wait_until(lambda version=version: models["mine"].version == version)
        wait_until(partial(more, len(answers) + 14))  # all that run and eight that began after the change
        ending.set()
        for thread in threads:
            thread.join()
    assert not errors and {version for _, version, _ in answers} == set(parts)
    for prompt, version, text in set(answers):
        assert text == expected(place, parts[version], prompt)
