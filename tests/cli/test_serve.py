"""`t3 serve`."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import urllib.request
from pathlib import Path

import pytest

from support.ledger_parts import make_place
from support.servers import adapters, wait_until  # noqa: F401
from tempertilt.cli import main
from tempertilt.serving.config import ServeConfig


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "70000"],
        ["--max-batch-size", "0"],
        ["--tilt-parameters", "weaker"],
        ["--api-key", "two words"],
        ["--max-model-len", "9999"],
        ["--host", "no.such.host.invalid"],
    ],
)
def test_flags_out_of_range_are_one_message(
    flags: list[str],
    adapters: dict[str, str],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "--backend", "transformers", "--adapter", adapters["first"], "--port", "0", *flags]) == 2
    assert capsys.readouterr().err.count("error:") == 1


def test_origins_are_gathered_and_checked(
    adapters: dict[str, str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configs: list[ServeConfig] = []
    monkeypatch.setattr("tempertilt.cli.serve._serve", lambda _args, config, *_: configs.append(config) or 0)
    command = ["serve", "--backend", "transformers", "--adapter", adapters["first"]]
    assert main([*command, "--allow-origin", "https://chat.example", "--allow-origin", "http://localhost:3000"]) == 0
    assert configs[0].allow_origin == ("https://chat.example", "http://localhost:3000")
    for wrong in ("chat.example", "https://chat.example/", "https://chat.example/page"):
        assert main([*command, "--allow-origin", wrong]) == 2
        assert "must be * or an origin" in capsys.readouterr().err


def test_the_address_is_printed_when_connections_are_accepted(
    adapters: dict[str, str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever waits for the line may connect at once."""
    answered: list[int] = []

    def connect(line: str, **_: object) -> None:
        host, port = line.split("/")[2].split(":")
        with socket.create_connection((host, int(port)), 5) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            answered.append(len(line))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("builtins.print", connect)
    assert main(["serve", "--backend", "transformers", "--device", "cpu", "--adapter", adapters["first"], "--port", "0"]) == 0
    assert answered


def test_a_ledger_is_served_and_looked_at_on_sighup(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEMPERTILT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempertilt.serving.ledger.POLL", 100.0)
    place = make_place(tmp_path / "place", tiny_dir)
    place.add("a")
    seen: list[dict[str, str]] = []

    def models(url: str) -> dict[str, str]:
        with urllib.request.urlopen(f"{url}/models", timeout=20) as answer:
            return {model["id"]: model["unlearning_version"] for model in json.load(answer)["data"]}

    def visit(url: str) -> None:
        try:
            seen.append(models(url))
            version = place.add("b")
            seen.append(models(url))
            os.kill(os.getpid(), signal.SIGHUP)
            wait_until(lambda: models(url)["mine"] == version)
            seen.append(models(url))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    visitors: list[threading.Thread] = []

    def started(line: str, **_: object) -> None:
        visitors.append(threading.Thread(target=visit, args=(line.split()[0],)))
        visitors[0].start()

    monkeypatch.setattr("builtins.print", started)
    first = place.ledger.version
    flags = ["--backend", "transformers", "--device", "cpu", "--port", "0"]
    assert main(["serve", *flags, "--ledger", f"mine={place.ledger.directory}", "--scope", "tenant=x"]) == 0
    visitors[0].join()
    assert seen == [{"mine": first}, {"mine": first}, {"mine": place.ledger.version}]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--adapter", "x"], "must be one"),
        (["--reply", "No."], "--reply is for --adapter"),
        (["--tilt-parameters", "any"], "must be refuse with --ledger"),
    ],
)
def test_flags_that_do_not_go_with_a_ledger(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempertilt.serving.backends._installed", lambda _: True)
    assert main(["serve", "--ledger", "x", *flags]) == 2
    assert message in capsys.readouterr().err
    assert main(["serve", "--scope", "tenant=x", "--adapter", "x"]) == 2
    assert "--ledger is needed for --scope" in capsys.readouterr().err
