"""Sources of rows: files, directories of text, data sets on the Hugging Face hub. What a row means is the business of records.

A row knows where it was read, so that every fault can name its file and line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tempertilt.data.fields import VALID_ROWS, Columns, has_shape
from tempertilt.data.lines import read_text, split_lines
from tempertilt.data.record import shorten, shown
from tempertilt.errors import ConfigError, DataError, MissingExtraError

TEXT_SUFFIXES = (".txt", ".md")
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

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


def open_rows(source: str | Path, split: str | None, columns: Columns) -> Iterator[Row]:
    """The rows of a file, of a directory of text files, or of a dataset on the hub, in order; arguments as of `load_records`.

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
        raise ConfigError(f"split is {split!r} but {source} is a local path; only a dataset on the hub has splits")
    try:
        yield from _path_rows(path, columns)
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
        raise DataError(f"no such file: {str(source)!r}; must be {_VALID_SOURCES}")
    return None


def _path_rows(path: Path, columns: Columns) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if path.is_dir():
        if suffix in TABLE_SUFFIXES:
            raise DataError(f"{path}: is a directory; a {suffix} source must be a file")
        return _directory_rows(path)
    if suffix in TEXT_SUFFIXES:
        return iter([_text_file_row(path, path.name)])
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, columns)
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": _jsonl_rows,
        ".ndjson": _jsonl_rows,
        ".json": _json_rows,
        ".parquet": _parquet_rows,
    }
    if suffix not in readers:
        raise DataError(f"{path}: unknown kind of file {suffix!r}; must be {_VALID_SOURCES}")
    return readers[suffix](path)


# --- JSON ------------------------------------------------------------------------------------------------------------


class _Repeated(NamedTuple):
    """What stands in for a JSON object in which a key is given twice."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> Any:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    names = [name for name, _ in pairs]
    return _Repeated(next(name for name in names if names.count(name) > 1))


def _repetition(value: object) -> str:
    """The fault of a row that holds, at any depth, an object in which a key is given twice; empty if there is none."""
    if isinstance(value, _Repeated):
        return f"the key {value.key!r} is given twice; must be given once"
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((fault for part in inner if (fault := _repetition(part))), "")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        if not line.strip():
            continue
        value, fault = None, ""
        try:
            value = json.loads(line, object_pairs_hook=_object)
            fault = _repetition(value)
        except json.JSONDecodeError as error:
            fault = f"not JSON: {error.msg} at column {error.colno}: {shorten(line.strip())}; must be an object on each line"
        except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
            fault = f"not JSON that can be read: {error}; must be an object on each line"
        yield Row(f"{path}:{number}", f"{path.name}:{number}", value, fault)


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        value = json.loads(read_text(path).strip() or "[]", object_pairs_hook=_object)
        fault = _repetition(value) if isinstance(value, _Repeated) else ""
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON: {error.msg} at line {error.lineno} column {error.colno}; "
            "must be a list of objects (one object per line is .jsonl)"
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: not JSON that can be read: {error}") from error
    rows = value.get("data") if isinstance(value, dict) else value
    if fault or not isinstance(rows, list):
        raise DataError(f"{path}: {fault or f'holds {shown(value)}; must be a list of objects, or {VALID_JSON}'}")
    for row in _numbered_rows(rows, str(path), path.name):
        yield row._replace(fault=_repetition(row.value))


VALID_JSON = '{"data": [...]}'


def _numbered_rows(rows: Iterable[object], label: str, name: str) -> Iterator[Row]:
    for number, value in enumerate(rows, start=1):
        yield Row(f"{label}:row {number}", f"{name}:{number}", value)


# --- CSV -------------------------------------------------------------------------------------------------------------

SEPARATORS = {"\t": "a tab", ",": "a comma", ";": "a semicolon", "|": "a bar"}


def _csv_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a table, whose columns are separated as in its header; an empty cell is no value."""
    lines = _csv_lines(path, columns)
    if not lines:
        return
    first, header = lines[0]
    for number, cells in lines[1:]:
        fault = f"the number of cells is {len(cells)}; must be {len(header)}, as in the header (line {first})"
        fault = "" if len(cells) == len(header) else fault
        values = {name: cell or None for name, cell in zip(header, cells) if name}
        yield Row(f"{path}:{number}", f"{path.name}:{number}", values, fault)


def _csv_lines(path: Path, columns: Columns) -> list[tuple[int, list[str]]]:
    """The cells of every row that is not blank, the header first, with the physical line on which the row starts."""
    text = read_text(path)
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    headers = []
    for separator in sorted(SEPARATORS, key=lambda separator: separator != usual):
        try:
            header = _split_csv(path, text, separator, limit=1)
        except DataError as error:  # quotes that another separator makes sense of
            fault = error
            continue
        if not header or has_shape(header[0][1], columns):
            return _with_header(path, _split_csv(path, text, separator))
        headers.append(header[0])
    if not headers:
        raise fault
    number, names = max(headers, key=lambda header: len(header[1]))
    raise DataError(
        f"{path}:{number}: the header holds the columns {shown(names)}; the first line must name the columns, {VALID_ROWS}, "
        f"separated by {', '.join(list(SEPARATORS.values())[:-1])} or {SEPARATORS['|']}; "
        "columns of other names are given by --columns question=NAME,answer=NAME (columns=)"
    )


def _with_header(path: Path, lines: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """The same lines, the names in the first one checked and without white space around them."""
    if not lines:
        return []
    number, names = lines[0][0], [name.strip() for name in lines[0][1]]
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        raise DataError(
            f"{path}:{number}: the header names {', '.join(map(repr, repeated))} more than once; must name each column once"
        )
    return [(number, names), *lines[1:]]


def _split_csv(path: Path, text: str, separator: str, limit: int | None = None) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines: list[tuple[int, list[str]]] = []
    start = 1
    size_limit = csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document; the setting is global to csv
    try:
        for cells in reader:
            if cells and (lines or cells != ["sep=", ""]):  # Excel's own way to name the separator
                lines.append((start, cells))
            if len(lines) == limit:
                break
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{start}: not CSV: {error} (row that starts on this line)") from error
    finally:
        csv.field_size_limit(size_limit)
    return lines


# --- other files, and the hub ----------------------------------------------------------------------------------------


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
        raise DataError(f"{path}: the directory holds no text file; must hold {' or '.join(TEXT_SUFFIXES)} files")
    for name in sorted(files):
        yield _text_file_row(files[name], name)


def _text_file_row(path: Path, document: str) -> Row:
    return Row(str(path), document, {"text": read_text(path).replace("\r\n", "\n")})


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
        dataset: Any = datasets.load_dataset(repo, config, split=split)
    except Exception as error:  # datasets, huggingface_hub and httpx share no base class
        raise DataError(
            f"{source}: no such local path, and the Hugging Face dataset cannot be loaded: "
            f"{type(error).__name__}: {error}; must be {_VALID_SOURCES}"
        ) from error
    if split is None:
        split = "train" if "train" in dataset or len(dataset) != 1 else next(iter(dataset))
        if split not in dataset:
            raise DataError(f"{source}: choose a split; must be one of {', '.join(sorted(dataset))}")
        dataset = dataset[split]
    return split, dataset
