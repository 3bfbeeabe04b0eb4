"""`t3 playground` from the command line, where it can't start."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from tempertilt.cli import main
from tempertilt.errors import ConfigError, MissingExtraError
from tempertilt.playground import app
from tempertilt.serving.sockets import listen


def refuse_gradio(name: str, *args: Any, **options: Any) -> Any:
    if name.split(".")[0] == "gradio":
        raise ImportError(name)
    return REAL_IMPORT(name, *args, **options)


REAL_IMPORT = builtins.__import__


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(builtins, "__import__", refuse_gradio)
    with pytest.raises(MissingExtraError, match=r"tempertilt\[ui\]"):
        app.import_gradio()
    assert main(["playground", "--adapter", "nowhere"]) == 2
    assert "tempertilt[ui]" in capsys.readouterr().err
    assert main(["playground"]) == 2
    assert "--adapter is needed" in capsys.readouterr().err


def test_a_port_that_is_taken_or_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tempertilt.cli.playground.import_gradio", lambda: None)
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        assert main(["playground", "--adapter", "nowhere", "--port", str(taken.getsockname()[1])]) == 2
    assert "--port 0" in capsys.readouterr().err
    for host, port in (("127.0.0.1", -1), ("not a host", 0)):
        with pytest.raises(ConfigError, match=r"must be|can.t listen"):
            listen(host, port)
