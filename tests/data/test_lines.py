"""Text and its lines: what ends a line, what is text, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tempertilt.data.lines import decode_text, half_pair, read_text, split_lines
from tempertilt.errors import DataError


def test_only_a_line_feed_ends_a_line() -> None:
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x00h\ri"
    assert split_lines(f"{odd}\n\nlast") == [odd, "", "last"]
    assert split_lines("one\r\ntwo\n") == ["one", "two"]
    assert split_lines("") == []
    assert split_lines("\n") == [""]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbfa\xef\xbb\xbf")
    assert read_text(path) == "a\ufeff"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("caf\xe9".encode("latin-1"), "pipe:1: not UTF-8 text: byte 0xe9 at offset 3; must be UTF-8"),
        (b"a\r\nb\n\xff\xff", "pipe:3: not UTF-8 text: byte 0xff at offset 5"),
        ("a".encode("utf-16"), "pipe: begins with the byte order mark of UTF-16; must be UTF-8"),
        ("Where?".encode("utf-16-le"), "pipe: begins as UTF-16 does, with every other byte 0; must be UTF-8"),
        ("Where?".encode("utf-16-be"), "pipe: begins as UTF-16 does"),
        ("a".encode("utf-16-be").join([b"\xfe\xff", b""]), "pipe: begins with the byte order mark of UTF-16"),
    ],
)
def test_other_encodings_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_text(data, "pipe")
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a: cannot be read: No such file or directory"):
        read_text(tmp_path / "a")


def test_half_of_a_surrogate_pair() -> None:
    assert half_pair("na\u00efve \U0001f600") == ""
    assert half_pair("ab\udcff") == "half of a surrogate pair, '\\udcff', at character 2"
