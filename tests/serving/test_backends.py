"""Which backend serves, and how vLLM is started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.servers import adapters  # noqa: F401
from tempertilt.cli import main
from tempertilt.errors import ConfigError, MissingExtraError
from tempertilt.integrations.vllm.options import SCHEDULER, WORKER
from tempertilt.integrations.vllm.shown import REPLIES, Replies
from tempertilt.requests.state import ActivePart
from tempertilt.serving import backends
from tempertilt.serving.config import ServeConfig


def test_which_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"fastapi", "uvicorn", "prometheus_client"}
    monkeypatch.setattr(backends, "_installed", lambda name: name in here)
    plain = ServeConfig()
    assert backends.choose_backend("auto", plain) == ("transformers", "")
    with pytest.raises(MissingExtraError, match="vllm"):
        backends.choose_backend("vllm", plain)
    here |= {"vllm", "tempertilt.integrations.vllm"}
    assert backends.choose_backend("auto", plain) == ("vllm", "")
    assert backends.choose_backend("transformers", plain) == ("transformers", "")
    for config in (
        ServeConfig(tilt_parameters="any"),
        ServeConfig(traces=True),
        ServeConfig(allow_origin=("https://a.example",)),
    ):
        name, why = backends.choose_backend("auto", config)
        assert name == "transformers" and "vLLM" in why
        with pytest.raises(ConfigError, match="--backend transformers"):
            backends.choose_backend("vllm", config)
    name, why = backends.choose_backend("auto", plain, ledger=True)
    assert name == "transformers" and "changes of a ledger by a restart only" in why
    assert backends.choose_backend("vllm", plain, ledger=True) == ("vllm", "")
    here.discard("uvicorn")
    with pytest.raises(MissingExtraError, match=r"tempertilt\[serve\]"):
        backends.choose_backend("transformers", plain)


MIDDLEWARE = ["--middleware", "tempertilt.serving.guards.RequireKeyOfEnvironment"]


def test_vllm_is_started_with_the_adapter_and_keeps_the_key_to_itself(
    adapters: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def serve_arguments(**options: Any) -> list[str]:
        seen.update(options)
        return ["MODEL", "--flag"]

    monkeypatch.setattr("tempertilt.integrations.vllm.serve.serve_arguments", serve_arguments)
    monkeypatch.setattr(backends, "_installed", lambda name: True)
    started: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execve", lambda *call: started.append(call))
    monkeypatch.setenv("T3_API_KEY", "from-the-environment")
    monkeypatch.setattr("tempertilt.cli.serve._serve", lambda *_: 0)
    assert (
        main(["serve", "--adapter", f"mine={adapters['first']}", "--port", "8123", "--max-model-len", "64", "--dtype", "float32"])
        == 0
    )
    [(program, command, environment)] = started
    assert program == sys.executable and command[1:] == [
        "-m",
        "tempertilt.integrations.vllm",
        "serve",
        "MODEL",
        "--flag",
        *MIDDLEWARE,
    ]
    assert seen == {
        "model": None,
        "peft_adapter": None,
        "adapter": adapters["first"],
        "host": "127.0.0.1",
        "port": 8123,
        "api_key": None,
        "max_model_len": 64,
        "served_model_name": "mine",
        "dtype": "float32",
        "reply": None,
    }
    assert environment["VLLM_API_KEY"] == "from-the-environment" and environment["VLLM_NO_USAGE_STATS"] == "1"


def test_vllm_is_started_with_several_models(adapters: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each under its name, and the base only where the operator asks for it."""
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(backends, "_installed", lambda name: True)
    monkeypatch.setattr("tempertilt.cli.serve._serve", lambda *_: 0)
    monkeypatch.setattr("os.execve", lambda program, command, environment: started.append((command, environment)))
    named = [f"--adapter={name}={adapters[place]}" for name, place in (("ann", "first"), ("bob", "second"))]
    for more, names in (([], ["ann", "bob"]), (["--serve-base"], ["ann", "bob", "base"])):
        assert main(["serve", *named, *more, "--backend", "vllm", "--api-key", "secret"]) == 0
        command, environment = started.pop()
        models = json.loads(command[command.index("--hf-overrides") + 1])["tempertilt"]["models"]
        assert list(models) == names and models["ann"] == {"adapter": str(Path(adapters["first"]).resolve())}
        assert models.get("base", {}) == {}
        at = command.index("--served-model-name")
        assert command[at + 1 : at + 1 + len(names)] == names
        assert command[command.index("--worker-cls") + 1] == WORKER and command[command.index("--scheduler-cls") + 1] == SCHEDULER
        middleware = [command[i + 1] for i, flag in enumerate(command) if flag == "--middleware"]
        assert middleware == ["tempertilt.integrations.vllm.naming.NameModel", MIDDLEWARE[1]]  # the last stands first
        assert environment["VLLM_USE_V2_MODEL_RUNNER"] == "0" and "secret" not in command
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert main(["serve", *named, "--backend", "vllm"]) == 0 and "--enforce-eager" in started.pop()[0]
    assert main(["serve", named[0], "--backend", "vllm"]) == 0 and "--enforce-eager" not in started.pop()[0]


def test_vllm_is_told_what_is_replied(adapters: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply has a middleware before it, which reads it from the environment; guesses have none."""
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(backends, "_installed", lambda name: True)
    monkeypatch.setattr("tempertilt.cli.serve._serve", lambda *_: 0)
    monkeypatch.setattr("os.execve", lambda program, command, environment: started.append((command, environment)))
    asked = ["serve", f"--adapter=ann={adapters['first']}", "--backend", "vllm"]
    assert main([*asked, "--reply", "I can't say.", "--stream-lag", "5", "--api-key", "secret"]) == 0
    command, environment = started.pop()
    middleware = [command[i + 1] for i, flag in enumerate(command) if flag == "--middleware"]
    assert middleware == ["tempertilt.integrations.vllm.shown.ShowReplies", MIDDLEWARE[1]]
    monkeypatch.setenv(REPLIES, environment[REPLIES])
    replies = Replies.of_environment()
    monkeypatch.delenv(REPLIES)
    [spoken] = replies.spoken
    assert replies.lag == 5 and spoken.tokens > 3
    assert spoken.begins(f"It was{spoken.tail}") == 6 and spoken.tail.endswith(spoken.alone)
    assert main([*asked, "--reply", "guess"]) == 0
    command, environment = started.pop()
    assert "--middleware" not in command and REPLIES not in environment


def test_vllm_is_started_with_the_parts_that_act(
    adapters: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The parts of a ledger by the requests' names; without any there is nothing to put on the engine."""
    parts = [ActivePart("REQ-1", Path(adapters["first"]), {}), ActivePart("REQ-2", Path(adapters["second"]), {})]
    asked: list[dict[str, str]] = []

    class Stub:
        def __init__(self, directory: str) -> None:
            assert directory == "/srv/ledger"

        def active(self, scope: dict[str, str]) -> list[ActivePart]:
            asked.append(scope)
            return parts

    seen: dict[str, Any] = {}
    monkeypatch.setattr("tempertilt.requests.Ledger", Stub)
    monkeypatch.setattr("tempertilt.integrations.vllm.serve.serve_arguments", lambda **options: seen.update(options) or ["MODEL"])
    monkeypatch.setattr(backends, "_installed", lambda name: True)
    monkeypatch.setattr("os.execve", lambda *call: None)
    monkeypatch.setattr("tempertilt.cli.serve._serve", lambda *_: 0)
    command = ["serve", "--ledger", "hr=/srv/ledger", "--scope", "tenant=acme", "--backend", "vllm"]
    assert main(command) == 0
    assert seen["adapter"] == {"REQ-1": adapters["first"], "REQ-2": adapters["second"]} and seen["served_model_name"] == "hr"
    assert asked == [{"tenant": "acme"}] and "2 parts act" in capsys.readouterr().err
    parts.clear()
    assert main(command) == 2 and "no part of the ledger" in capsys.readouterr().err


def test_starting_vllm_loads_nothing_of_the_transformers_engine() -> None:
    """vLLM's environment may hold another transformers than the engine needs."""
    code = (
        "import sys, tempertilt.cli.serve, tempertilt.serving.guards\n"
        "print([name for name in sys.modules if name in ('torch', 'transformers', 'tempertilt.models.t3', 'fastapi')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
