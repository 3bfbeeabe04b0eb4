"""Attacks that go over HTTP: the answers are those of the served model, parameters reach it, and faults are told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from support.audits import FORGET, HOLDOUT, RETAIN
from support.servers import KEY, Running, adapters, serving  # noqa: F401
from tempertilt.audit.attempts import Attempt
from tempertilt.audit.run import AuditConfig, Sources, run_audit
from tempertilt.audit.served import Endpoint, ServedError, ServedTarget
from tempertilt.audit.target import Target
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.record import Message
from tempertilt.errors import ConfigError
from tempertilt.models.t3 import load_unlearned

TELLS = ExampleConfig(system_prompt="Be kind.")
ASKED = (Message("user", "Where was Hina Ameen born?"),)
ATTEMPTS = [
    Attempt("chat", 1, ASKED),
    Attempt("another system message", 1, ASKED, system_prompt="Be rude."),
    Attempt("no system message", 1, ASKED, system_prompt=""),
    Attempt("begun", 1, ASKED, start="She was"),
    Attempt("plain", 1, text="Hina Ameen was born in"),
    Attempt("two turns", 1, ASKED, then=("Are you sure?",)),
    Attempt("off", 1, ASKED, version="off"),
]


@pytest.fixture(scope="module")
def running(adapters: dict[str, str]) -> Iterator[Running]:  # noqa: F811
    with serving({"first": adapters["first"]}) as server:
        yield server


@pytest.fixture(scope="module")
def loaded(adapters: dict[str, str]) -> tuple[Any, Any]:  # noqa: F811
    return load_unlearned(adapters["first"])


def endpoint(running: Running, **options: Any) -> Endpoint:
    return Endpoint(f"{running.url}/v1", **{"model": "first", "api_key": KEY, **options})


def test_answers_over_http_are_those_of_the_model_here(running: Running, loaded: tuple[Any, Any]) -> None:
    here = Target(*loaded, TELLS, 6)
    there = ServedTarget(*loaded, TELLS, 6, endpoint=endpoint(running))
    for attempt in ATTEMPTS:
        [alone], [served] = here.ask([attempt], "s"), there.ask([attempt], "s")
        assert served.answers == alone.answers and served.ended == alone.ended, attempt.form
    drawn = [Attempt("drawn", 1, ASKED, draw=i) for i in range(6)]
    answers = [reply.answers for reply in there.ask(drawn, "s")]
    assert len(set(answers)) > 3 and answers == [reply.answers for reply in there.ask(drawn, "s")]


@pytest.mark.integration
def test_a_whole_audit(running: Running, loaded: tuple[Any, Any], tmp_path: Path) -> None:
    small = AuditConfig(records=2, attempts=2, draws=1, unchanged=1, max_new_tokens=4, audit_batch=2)
    sources = Sources(FORGET, RETAIN, HOLDOUT)
    options: dict[str, Any] = {"examples": TELLS, "progress": False}
    here = run_audit(*loaded, sources, small, tmp_path / "a.jsonl", **options)
    there = run_audit(*loaded, sources, small, tmp_path / "b.jsonl", endpoint=endpoint(running), **options)
    assert "parameters" in there.attacks and "parameters" not in here.attacks
    assert any(skipped.kind == "parameters" and "--url" in skipped.why for skipped in here.skipped)
    for name in set(here.attacks) - {"sampling"}:
        assert [j._asdict() for j in here.attacks[name]] == [j._asdict() for j in there.attacks[name]], name


class Stub(BaseHTTPRequestHandler):
    """Answers what the server of the test says, and keeps what was asked."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))  # type: ignore[attr-defined]
        self._answer({"choices": [{"message": {"content": "In Rome."}, "text": " Rome.", "finish_reason": "length"}]})

    def do_GET(self) -> None:
        self._answer({"data": [{"id": name} for name in self.server.models]})  # type: ignore[attr-defined]

    def _answer(self, content: Any) -> None:
        status, text = self.server.status, json.dumps(content).encode()  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("x-unlearning-version", "abc")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture()
def stub() -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), Stub)
    server.asked, server.models, server.status = [], ["one"], 200
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield server
    server.shutdown()


def test_what_is_sent(stub: Any, loaded: tuple[Any, Any]) -> None:
    target = ServedTarget(*loaded, TELLS, 6, endpoint=Endpoint(stub.url, "one", "key", "abc"))
    [reply] = target.ask([Attempt("x", 1, ASKED, ban_refusals=True)], "s")
    [(path, key, body)] = stub.asked
    assert (path, key, reply.answers, reply.ended) == ("/v1/chat/completions", "Bearer key", ("In Rome.",), False)
    assert body["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": ASKED[0].content}]
    assert body["temperature"] == 0.0 and body["max_tokens"] == 6 and set(body["logit_bias"].values()) == {-100}
    assert target.why_not(Attempt("x", 1, ASKED, ban_refusals=True)) == ""
    target.ask([Attempt("x", 1, ASKED, start="In", draw=1)], "s")
    path, _, body = stub.asked[-1]
    assert path == "/v1/completions" and body["prompt"] == target.encode(Attempt("x", 1, ASKED, start="In", draw=1))
    assert body["temperature"] == 1.0 and isinstance(body["seed"], int) and "logit_bias" not in body


def test_faults_of_the_server(stub: Any, loaded: tuple[Any, Any]) -> None:
    assert Endpoint(stub.url, "").only_model() == "one"
    stub.models = ["one", "two"]
    with pytest.raises(ServedError, match="lists one, two; name the one to attack with --served-model"):
        Endpoint(stub.url, "").only_model()
    with pytest.raises(ServedError, match="serves version abc of a ledger; must be def"):
        Endpoint(stub.url, "one", version="def").post("/completions", {})
    stub.status = 401
    with pytest.raises(ServedError, match="answers 401"):
        Endpoint(stub.url, "one").post("/completions", {})
    with pytest.raises(ServedError, match="can't be asked"):
        Endpoint("http://127.0.0.1:1/v1", "one").post("/completions", {})
    with pytest.raises(ConfigError, match="must be an address"):
        Endpoint("localhost:8000", "one")
