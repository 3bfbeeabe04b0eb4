"""Clients by key: the file that names them, their pace, and that they take turns."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("fastapi")

from support.architectures import build
from support.rows import NoTexts, Row, unlearned
from support.servers import adapters, serving, wait_until  # noqa: F401
from tempertilt.errors import ConfigError
from tempertilt.serving.batch import Batch
from tempertilt.serving.clients import Client, Pace, find_client, read_clients
from tempertilt.serving.config import ServeConfig
from tempertilt.serving.decoder import Decoder
from tempertilt.serving.engine import Engine

TEXT = """# who may ask
sales  s3cret-1
support s3cret-2 2   # two in a minute

"""


def test_a_file_of_clients(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(TEXT)
    assert read_clients(path) == [Client("sales", "s3cret-1"), Client("support", "s3cret-2", 2)]
    assert find_client(read_clients(path), b"s3cret-2") == Client("support", "s3cret-2", 2)
    assert find_client(read_clients(path), b"s3cret-3") is None and find_client([], b"") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sales", "keys, line 1 has 1 words; must be NAME KEY"),
        ("\nsales k3y 0", "keys, line 2 has 3 words; must be NAME KEY"),
        ("sales k3y many", "line 1"),
        ("a k3y\nb k3y", "line 2: the name 'b', or its key, is given before"),
        ("a k3y\na other", "line 2: the name 'a', or its key"),
        ("a k\u00e9y", "line 1: the key of 'a' holds characters beyond ASCII"),
        ("# nobody", "names no client"),
    ],
)
def test_a_wrong_file_is_told_by_its_line_and_without_keys(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_clients(path)
    assert message in str(caught.value) and "k3y" not in str(caught.value)


def test_one_key_or_many() -> None:
    with pytest.raises(ConfigError, match="api_key and api_keys are both given"):
        ServeConfig(api_key="a", api_keys="b")


def test_a_bucket_of_a_minute() -> None:
    time = [0.0]
    pace = Pace(3, lambda: time[0])
    assert [pace.wait() for _ in range(4)] == [0, 0, 0, 20]
    time[0] = 19.0
    assert pace.wait() == 1
    time[0] = 20.0
    assert [pace.wait(), pace.wait()] == [0, 20]
    time[0] = 10_000.0
    assert [pace.wait() for _ in range(4)] == [0, 0, 0, 20]  # no more than a minute's worth is saved up


def test_who_has_fewer_answers_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """One client queues ten, another comes after it with two: it does not wait for the ten."""
    llama = Decoder(unlearned(build("llama")), NoTexts(), frozenset())
    order: list[str] = []
    step = Batch.step

    def watched(batch: Batch) -> Any:
        order.extend(answer.client for answer in batch.answers if not answer.tokens)
        return step(batch)

    monkeypatch.setattr(Batch, "step", watched)
    rows = [Row(llama, 3, 4, i) for i in range(12)]
    for number, row in enumerate(rows):
        row.answer.client = "many" if number < 10 else "few"
    engine = Engine(max_batch_size=2, max_waiting=99)
    try:
        engine.submit([row.answer for row in rows])
        wait_until(lambda: all(row.answer.ended for row in rows))
    finally:
        engine.stop()
    assert len(order) == 12 and order[:4].count("few") == 2 and set(order[:2]) == {"many", "few"}
    for row in rows:
        row.check(llama.model)


class Answered(NamedTuple):
    status: int
    headers: Any
    text: str


def fetch(url: str, key: str = "", body: dict[str, Any] | None = None) -> Answered:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as response:
            return Answered(response.status, response.headers, response.read().decode())
    except urllib.error.HTTPError as error:
        return Answered(error.code, error.headers, error.read().decode())


def test_over_http(adapters: dict[str, str], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(TEXT)
    body = {"model": "first", "prompt": "Who is Li?", "max_tokens": 2}
    with serving({"first": adapters["first"]}, api_key="", api_keys=str(keys)) as running:

        def ask(key: str) -> Answered:
            return fetch(f"{running.url}/v1/completions", key, body)

        assert [ask("s3cret-1").status for _ in range(4)] == [200] * 4
        assert [ask("s3cret-2").status for _ in range(3)] == [200, 200, 429]
        refused = ask("s3cret-2")
        assert refused.status == 429 and 1 <= int(refused.headers["retry-after"]) <= 30
        assert json.loads(refused.text)["error"]["code"] == "rate_limit_exceeded" and "s3cret" not in refused.text
        models = f"{running.url}/v1/models"
        assert fetch(models, "s3cret-2").status == 200  # to look costs nothing
        assert ask("s3cret-3").status == 401 and fetch(models).status == 401
        assert fetch(f"{running.url}/health").status == 200
