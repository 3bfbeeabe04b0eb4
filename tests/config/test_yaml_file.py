"""YAML files: numbers in every spelling, keys given once, and errors that name the file and the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tempertilt.config.yaml_file import read_yaml
from tempertilt.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "options.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1e3", "1.e3", "1.5e3", "-2e-05", "+1e2", ".5e1", "1e+4", "0.25", "3"])
def test_numbers_are_those_of_json(tmp_path: Path, text: str) -> None:
    value = read_yaml(write(tmp_path, f"a: {text}"))["a"]
    expected = float(text) if any(char in text for char in "eE.") else json.loads(text)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize("text", ["1e", "e3", "1e3x", "'1e3'", "v1e3", "1-e3"])
def test_what_only_looks_like_a_number_is_text(tmp_path: Path, text: str) -> None:
    assert isinstance(read_yaml(write(tmp_path, f"a: {text}"))["a"], str)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: 1\nb: 2\na: 3\n", r"line 3: 'a' stands on line 1 already"),
        ("a:\n  b: 1\n  c: 2\n  b: 1\n", r"line 4: 'b' stands on line 2 already"),
        ("a:\n- {b: 1, b: 2}\n", r"line 2: 'b' stands on line 2 already"),
    ],
)
def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path, text: str, where: str) -> None:
    with pytest.raises(ConfigError, match=rf"--config .*options\.yaml' is not valid YAML: {where}"):
        read_yaml(write(tmp_path, text), "--config")


def test_the_same_key_in_two_mappings_is_two_keys(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "a: {x: 1}\nb: {x: 2}\n")) == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [("- 1\n- 2\n", "holds list; must be lines of"), ("just words", "holds str"), ("", "holds NoneType"),
     ("a: [1", "is not valid YAML"), ("a: !!python/object:os.system x", "is not valid YAML"), ("a: b: c", "is not valid YAML")],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(write(tmp_path, text))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe")
    for name in ("none.yaml", "bytes.yaml", "."):
        with pytest.raises(ConfigError, match=r"^--config '.*' cannot be read: "):
            read_yaml(tmp_path / name, "--config")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_text("a: 1", encoding="utf-8-sig")
    assert read_yaml(path) == {"a": 1}


def test_the_text_may_be_prepared(tmp_path: Path) -> None:
    def refuse(_: str) -> Any:
        raise ConfigError("no")

    assert read_yaml(write(tmp_path, "a: ${X}"), prepare=lambda text: text.replace("${X}", "5")) == {"a": 5}
    with pytest.raises(ConfigError, match=r"^no$"):
        read_yaml(write(tmp_path, "a: 1"), prepare=refuse)
