"""Sources of rows: files, directories of text, data sets on the Hugging Face hub. What a row means is the business of records.

A row knows where it was read, so that every fault can name its file and line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tempertilt.errors import ConfigError, DataError, MissingExtraError

SHAPES = (("question", "answer"), ("prompt", "completion"), ("messages",), ("text",))
"""The fields that make a row a record; a row has exactly one of these shapes."""

TEXT_SUFFIXES = (".txt", ".md")
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")

VALID_ROWS = f"{', '.join(' + '.join(shape) for shape in SHAPES[:-1])} or text (document is optional)"
_VALID_SOURCES = (
    f"a {', '.join(TABLE_SUFFIXES[:-1])} or {TABLE_SUFFIXES[-1]} file, a text file or a directory of text files "
    f"({', '.join(TEXT_SUFFIXES)}), or a Hugging Face dataset (org/name, org/name:config or org/name:config:split)"
)
_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<config>[^:/]+))?(?::(?P<split>[^:/]+))?")


class Row(NamedTuple):
    """One row as it was read: its value, or the `fault` that made it unreadable."""

    source: str
    document: str
    value: object
    fault: str = ""


def open_rows(source: str | Path, split: str | None) -> Iterator[Row]:
    """The rows of a file, of a directory of text files, or of a dataset on the hub, in order; `source` as of `load_records`.

    Raises:
        DataError: the source cannot be read. A row that cannot has its `fault` instead.
        ConfigError: `split` is given for a local path, or is not the one that the name has.
        MissingExtraError: Parquet or the hub is asked for without the `data` extra.
    """
    path = _local_path(source)
    if path is None:
        yield from _hub_rows(str(source), split)
        return
    if split is not None:
        raise ConfigError(f"split is {split!r} but {source} is a local path; split is valid only for a hub dataset")
    try:
        yield from _path_rows(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _local_path(source: str | Path) -> Path | None:
    """The path that `source` names, or None if it can only be a dataset on the hub."""
    try:
        path = Path(source).expanduser()
        if str(source) and path.exists():
            return path
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from error
    except RuntimeError as error:  # "~name" of an unknown user
        raise DataError(f"no such file: {str(source)!r}: {error}") from error
    name = str(source).split(":")[0]
    is_path = isinstance(source, Path) or Path(name).suffix.lower() in TABLE_SUFFIXES + TEXT_SUFFIXES
    if is_path or not _HUB_ID.fullmatch(str(source)):
        raise DataError(f"no such file: {str(source)!r}; valid: {_VALID_SOURCES}")
    return None


def _path_rows(path: Path) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if path.is_dir():
        if suffix in TABLE_SUFFIXES:
            raise DataError(f"{path}: is a directory; a {suffix} source must be a file")
        return _directory_rows(path)
    if suffix in TEXT_SUFFIXES:
        return iter([_text_file_row(path, path.name)])
    readers = {
        ".jsonl": _jsonl_rows,
        ".ndjson": _jsonl_rows,
        ".json": _json_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    if suffix not in readers:
        raise DataError(f"{path}: unknown kind of file {suffix!r}; valid: {_VALID_SOURCES}")
    return readers[suffix](path)


# --- readers: one for each kind of file ------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "valid: UTF-8, with or without a byte order mark: convert the file and try again"
        ) from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        value, fault = None, ""
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            fault = f"not JSON: {error.msg} at column {error.colno}: {shorten(line.strip())}; valid: an object per line"
        except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
            fault = f"not JSON that can be read: {error}; valid: an object per line"
        yield Row(f"{path}:{number}", f"{path.name}:{number}", value, fault)


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        value = json.loads(_read_text(path).strip() or "[]")
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON: {error.msg} at line {error.lineno} column {error.colno}; "
            "valid: a list of objects (one object per line is .jsonl)"
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: not JSON that can be read: {error}") from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(f'{path}: holds {seen(value)}; valid: a list of objects, or {{"data": [...]}}')
    yield from _numbered_rows(rows, str(path), path.name)


def _numbered_rows(rows: Iterable[object], label: str, name: str) -> Iterator[Row]:
    for number, value in enumerate(rows, start=1):
        yield Row(f"{label}:row {number}", f"{name}:{number}", value)


def _csv_rows(path: Path) -> Iterator[Row]:
    lines = _csv_lines(path)
    if not lines:
        return
    header = [name.strip() for name in lines[0][1]]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(
            f"{path}:{lines[0][0]}: the header names {', '.join(map(repr, repeated))} more than once; valid: once each"
        )
    if not any(set(shape) <= set(header) for shape in SHAPES):
        raise DataError(
            f"{path}:{lines[0][0]}: the header holds the columns {seen(header)}; the first line must name the "
            f"columns; valid: {VALID_ROWS}, separated by commas"
        )
    for number, cells in lines[1:]:
        fault = f"the number of cells is {len(cells)}; valid: {len(header)}, as in the header"
        fault = "" if len(cells) == len(header) else fault
        yield Row(f"{path}:{number}", f"{path.name}:{number}", dict(zip(header, cells)), fault)


def _csv_lines(path: Path) -> list[tuple[int, list[str]]]:
    """The cells of every row that is not blank, with the physical line on which the row starts."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    lines, start = [], 1
    size_limit = csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document; the setting is global to csv
    try:
        for cells in reader:
            if cells:
                lines.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{start}: not CSV: {error} (row that starts on this line)") from error
    finally:
        csv.field_size_limit(size_limit)
    return lines


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data", f"reading the Parquet file {path}") from error
    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(batch_size=1000) for row in batch.to_pylist())
            yield from _numbered_rows(rows, str(path), path.name)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {error}") from error


def _directory_rows(path: Path) -> Iterator[Row]:
    files = {}
    for file in path.rglob("*"):
        parts = file.relative_to(path).parts
        hidden = any(part.startswith(".") for part in parts)
        if file.suffix.lower() in TEXT_SUFFIXES and file.is_file() and not hidden:
            files["/".join(parts)] = file
    if not files:
        raise DataError(f"{path}: the directory holds no text file; valid: {' or '.join(TEXT_SUFFIXES)} files")
    for name in sorted(files):
        yield _text_file_row(files[name], name)


def _text_file_row(path: Path, document: str) -> Row:
    return Row(str(path), document, {"text": _read_text(path).replace("\r\n", "\n")})


def _hub_rows(source: str, split: str | None) -> Iterator[Row]:
    match = _HUB_ID.fullmatch(source)
    assert match is not None
    repo, config, own_split = match.group("repo", "config", "split")
    if own_split and split and own_split != split:
        raise ConfigError(f"split is {split!r} but {source} names the split {own_split!r}; give one of them")
    split, dataset = _load_dataset(source, repo, config, own_split or split)
    name = ":".join(part for part in (repo, config, split) if part)
    yield from _numbered_rows(dataset, name, name)


def _load_dataset(source: str, repo: str, config: str | None, split: str | None) -> tuple[str, Iterable[object]]:
    """The split that was chosen and its rows."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "data", f"reading {source} from the Hugging Face hub") from error
    try:
        found: Any = datasets.load_dataset(repo, config, split=split)
    except Exception as error:  # datasets, huggingface_hub and httpx share no base class
        raise DataError(
            f"{source}: no such local path, and the Hugging Face dataset cannot be loaded: "
            f"{type(error).__name__}: {error}; valid: {_VALID_SOURCES}"
        ) from error
    if split is None:
        split = "train" if "train" in found or len(found) != 1 else next(iter(found))
        if split not in found:
            raise DataError(f"{source}: choose a split; valid: {', '.join(sorted(found))}")
        found = found[split]
    return split, found


def shorten(text: str, length: int = 60) -> str:
    """At most `length` characters, the last one an ellipsis where there were more."""
    return text if len(text) <= length else text[: length - 1] + "…"


def seen(value: object) -> str:
    """A value as an error shows it: shortened, with its type."""
    return "null" if value is None else f"{shorten(repr(value))} ({type(value).__name__})"
