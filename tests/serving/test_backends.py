"""Which backend serves, and how vLLM is started."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from support.servers import adapters  # noqa: F401
from tempertilt.cli import main
from tempertilt.errors import ConfigError, MissingExtraError
from tempertilt.serving import backends
from tempertilt.serving.config import ServeConfig


def test_which_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"fastapi", "uvicorn", "prometheus_client"}
    monkeypatch.setattr(backends, "_installed", lambda name: name in here)
    one, two, plain = {"a": "x"}, {"a": "x", "b": "y"}, ServeConfig()
    assert backends.choose_backend("auto", one, plain) == ("transformers", "")
    with pytest.raises(MissingExtraError, match="vllm"):
        backends.choose_backend("vllm", one, plain)
    here |= {"vllm", "tempertilt.integrations.vllm"}
    assert backends.choose_backend("auto", one, plain) == ("vllm", "")
    assert backends.choose_backend("transformers", one, plain) == ("transformers", "")
    for adapters_, config in ((two, plain), (one, ServeConfig(serve_base=True)), (one, ServeConfig(tilt_parameters="any"))):
        name, why = backends.choose_backend("auto", adapters_, config)
        assert name == "transformers" and "vLLM" in why
        with pytest.raises(ConfigError, match="--backend transformers"):
            backends.choose_backend("vllm", adapters_, config)
    here.discard("uvicorn")
    with pytest.raises(MissingExtraError, match=r"tempertilt\[serve\]"):
        backends.choose_backend("transformers", one, plain)


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


def test_starting_vllm_loads_nothing_of_the_transformers_engine() -> None:
    """vLLM's environment may hold another transformers than the engine needs."""
    code = (
        "import sys, tempertilt.cli.serve, tempertilt.serving.guards\n"
        "print([name for name in sys.modules if name in ('torch', 'transformers', 'tempertilt.models.t3', 'fastapi')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
