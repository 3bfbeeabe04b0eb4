"""`t3 serve`."""

from __future__ import annotations

import signal
import socket

import pytest

from support.servers import adapters  # noqa: F401
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
    monkeypatch.setattr("tempertilt.cli.serve._serve", lambda _args, config, _adapters: configs.append(config) or 0)
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
