"""What enters by flags and standard input, and leaves by standard output: any text, in whatever encoding the terminal has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from tempertilt.data.lines import decode_text, half_pair, json_text, split_lines
from tempertilt.errors import DataError

STDIN = "standard input"


def never_fail_on_output() -> None:
    """Have standard output write characters that its encoding lacks as escapes, where it would raise an error."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """Print JSON; characters that the encoding of standard output may lack as JSON's own escapes."""
    unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") in ("utf8", "utf16", "utf32")
    print(json_text(value, indent=2, ensure_ascii=not unicode, default=str))


def read_stdin() -> list[str]:
    """The lines of standard input, which must be UTF-8.

    Raises:
        DataError: it is not; it names the line.
    """
    binary = getattr(sys.stdin, "buffer", None)
    return split_lines(sys.stdin.read() if binary is None else decode_text(binary.read(), STDIN))


def stdin_lines() -> Iterator[str]:
    """The lines of standard input as they come; errors as of `read_stdin`."""
    binary = getattr(sys.stdin, "buffer", sys.stdin)
    number = 1
    while line := binary.readline():
        text = line if isinstance(line, str) else decode_text(line, STDIN, first_line=number)
        yield text.removesuffix("\n").removesuffix("\r")
        number += 1


def check_argument(text: str, flag: str) -> str:
    """The value of a flag.

    Raises:
        DataError: it is not Unicode text: the terminal's bytes were not of its encoding.
    """
    if fault := half_pair(text):
        raise DataError(f"{flag} has {fault}; must be text in the terminal's encoding")
    return text
