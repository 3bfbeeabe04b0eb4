"""Standard input and output, and flags: any text in, any terminal out."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from tempertilt.cli.streams import check_argument, never_fail_on_output, print_json, read_stdin, stdin_lines
from tempertilt.errors import DataError


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


def stdout(monkeypatch: pytest.MonkeyPatch, encoding: str) -> io.BytesIO:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    return written


@pytest.mark.parametrize("read", [read_stdin, lambda: list(stdin_lines())])
def test_standard_input_is_utf8_in_lines_that_end_with_a_line_feed(monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    stdin(monkeypatch, "\ufeffWho?\r\na\u2028b\x85c\n\n\x00é".encode())
    assert read() == ["Who?", "a\u2028b\x85c", "", "\x00é"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo"))
    assert read() == ["one", "two"]


@pytest.mark.parametrize("read", [read_stdin, lambda: list(stdin_lines())])
def test_other_encodings_name_the_line(monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    stdin(monkeypatch, b"one\ntwo\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"^standard input:3: not UTF-8 text: byte 0xe9"):
        read()
    stdin(monkeypatch, "Who?".encode("utf-16"))
    with pytest.raises(DataError, match=r"^standard input: begins with the byte order mark of UTF-16"):
        read()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16"])
def test_output_never_fails(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    text = "naïve \u2028 \u0416 \U0001f600 \udcff"
    written = stdout(monkeypatch, encoding)
    never_fail_on_output()
    print(text)
    shown = written.getvalue().decode(encoding)
    assert shown.startswith("na") and "\\udcff" in shown
    assert ("\U0001f600" in shown) == encoding.startswith("utf") and ("ï" in shown) == (encoding != "ascii")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    value = {"naïve": ["\u2028\u0416\U0001f600\x00", float("nan"), float("inf"), 1.5]}
    written = stdout(monkeypatch, encoding)
    never_fail_on_output()
    print_json(value)
    text = written.getvalue().decode(encoding)
    assert json.loads(text, parse_constant=pytest.fail) == {"naïve": ["\u2028\u0416\U0001f600\x00", None, None, 1.5]}
    assert ("\U0001f600" in text) == (encoding == "utf-8")


def test_bytes_of_another_encoding_in_a_flag() -> None:
    assert check_argument("naïve", "--prompt") == "naïve"
    with pytest.raises(DataError, match=r"^--prompt has half of a surrogate pair, '\\udcff', at character 1; must be text"):
        check_argument("a\udcff", "--prompt")
