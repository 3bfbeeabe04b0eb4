"""Text that comes from files and pipes: UTF-8, in lines that end with a line feed and nothing else; and JSON that leaves."""

from __future__ import annotations

import codecs
import json
import math
from pathlib import Path
from typing import Any

from tempertilt.errors import DataError

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MUST_BE = "must be UTF-8, with or without a byte order mark: convert it and try again"


def decode_text(data: bytes, name: str, *, first_line: int = 1) -> str:
    """The text in some bytes, without a byte order mark.

    Args:
        name: of where they were read, for the error.
        first_line: the number of their first line there.

    Raises:
        DataError: they are not UTF-8; it names the line.
    """
    if data.startswith(UTF16_MARKS):
        raise DataError(f"{name}: begins with the byte order mark of UTF-16; {MUST_BE}")
    if data[:4:2] == b"\0\0" or data[1:4:2] == b"\0\0":  # letters of English in two bytes each
        raise DataError(f"{name}: begins as UTF-16 does, with every other byte 0; {MUST_BE}")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + first_line
        byte = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise DataError(f"{name}:{line}: not UTF-8 text: {byte}; {MUST_BE}") from error


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        DataError: the file is not UTF-8, or cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return decode_text(data, str(path))


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their ends.

    A line ends with a line feed, or a carriage return and a line feed. Other characters that end lines in typesetting, such as
    U+2028 and U+0085, are part of the text, as JSON has it; `str.splitlines` would cut there.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def half_pair(text: str) -> str:
    """Where a text holds half of a surrogate pair, which no tokenizer takes and no file can hold; empty if nowhere.

    JSON can spell such a half, and Python makes one of a byte of a command line that is not UTF-8.
    """
    at = next((at for at, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
    return "" if at is None else f"half of a surrogate pair, {text[at]!r}, at character {at}"


def json_text(value: Any, **options: Any) -> str:
    """JSON as any other program reads it: numbers that are not finite, which JSON has no names for, as null.

    Args:
        options: as of `json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
