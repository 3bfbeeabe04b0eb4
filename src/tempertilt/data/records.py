"""Records: what to forget and what to keep, as text, read from files or from the Hugging Face hub and validated.

A record is a chat, a prompt with its completion, or plain text. A row of a file is one record; its fields say which
kind: `question` + `answer`, `prompt` + `completion`, `messages`, or `text`, and optionally `document`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from tempertilt.errors import ConfigError, DataError, MissingExtraError

logger = logging.getLogger("tempertilt")

Kind = Literal["chat", "completion", "text"]
Role = Literal["system", "user", "assistant"]

MAX_LISTED = 10
"""Errors list at most this many rows or records."""

SHAPES = (("question", "answer"), ("prompt", "completion"), ("messages",), ("text",))
"""The fields that make a row a record; a row has exactly one of these shapes."""

TEXT_SUFFIXES = (".txt", ".md")
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")

_VALID_ROWS = f"{', '.join(' + '.join(shape) for shape in SHAPES[:-1])} or text (document is optional)"
_VALID_SOURCES = (
    f"a {', '.join(TABLE_SUFFIXES[:-1])} or {TABLE_SUFFIXES[-1]} file, a text file or a directory of text files "
    f"({', '.join(TEXT_SUFFIXES)}), or a Hugging Face dataset (org/name, org/name:config or org/name:config:split)"
)
_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<config>[^:/]+))?(?::(?P<split>[^:/]+))?")


# --- the record ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """One turn of a chat: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One piece of text to forget or to keep.

    Attributes:
        kind: "chat" (rendered with the chat template), "completion" (prompt and completion as they are), or "text".
        messages: the turns of a chat, the last one from the assistant; empty for the other kinds.
        prompt: the prompt of a completion; empty for the other kinds.
        answer: the last assistant turn, the completion, or the whole text.
        document: the unit that splits never cut.
        source: where the record was read, for messages: "path/to/file.jsonl:12".
    """

    kind: Kind
    messages: tuple[Message, ...]
    prompt: str
    answer: str
    document: str
    source: str

    @classmethod
    def from_messages(cls, messages: Iterable[Message], *, document: str, source: str) -> Record:
        """Return a chat record; the last message must be the assistant's."""
        turns = tuple(messages)
        return cls("chat", turns, "", turns[-1].content, document, source)

    @classmethod
    def from_question(cls, question: str, answer: str, *, document: str, source: str) -> Record:
        """Return a chat record of one question and its answer."""
        messages = (Message("user", question), Message("assistant", answer))
        return cls.from_messages(messages, document=document, source=source)

    @classmethod
    def from_completion(cls, prompt: str, completion: str, *, document: str, source: str) -> Record:
        """Return a record of a prompt and its completion, to which no chat template is applied."""
        return cls("completion", (), prompt, completion, document, source)

    @classmethod
    def from_text(cls, text: str, *, document: str, source: str) -> Record:
        """Return a record of plain text."""
        return cls("text", (), "", text, document, source)

    @property
    def key(self) -> str:
        """SHA-256 (hex) of kind and content, `document` and `source` left out.

        The content is compared after Unicode NFC normalisation and with every run of white space taken as one space
        (and none at the ends), so trivial variants of a text have the same key, though their tokens may differ.
        """
        turns = [(message.role, _normalise(message.content)) for message in self.messages]
        texts = [] if turns else [_normalise(self.prompt), _normalise(self.answer)]
        return hashlib.sha256(json.dumps([self.kind, turns, texts]).encode()).hexdigest()

    @property
    def question(self) -> str:
        """What a report shows: the last user message, the prompt, or the first 80 characters of a text."""
        if self.kind == "chat":
            return next((message.content for message in reversed(self.messages) if message.role == "user"), "")
        return self.prompt if self.kind == "completion" else _shorten(self.answer, 80)


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


# --- loading ---------------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """One row as it was read: its value, or the `fault` that made it unreadable."""

    source: str
    document: str
    value: object
    fault: str = ""


class _BadRowError(Exception):
    """Why one row is no record; collected and reported with the others."""


def load_records(source: str | Path, *, split: str | None = None, limit: int | None = None) -> list[Record]:
    """Read records, in the order of the file.

    Args:
        source: a .jsonl, .ndjson, .json (a list of objects, or `{"data": [...]}`), .csv or .parquet file; a text file
            or a directory of text files (.txt and .md, recursive, sorted, hidden ones left out; one record per file);
            or the name of a Hugging Face dataset, `org/name`, `org/name:config` or `org/name:config:split`. An existing
            path always wins; a `Path`, a known suffix, or a name not of the form org/name is never looked up on the
            hub.
        split: the split of a Hugging Face dataset; by default its only one, or "train".
        limit: take only the first `limit` rows.

    Returns:
        At least one record. `document` is the field of that name, or else unique to the record: the file's name and the
        line or row number, or a text file's path within its directory.

    Raises:
        DataError: the source cannot be read, holds no record, or holds rows that are not records (up to ten are
            listed).
        ConfigError: `limit` is less than 1, or `split` does not apply.
        MissingExtraError: Parquet or the hub is asked for without the `data` extra.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; valid: 1 or more, or none for all records")
    rows = list(itertools.islice(_open(source, split), limit))
    records, faults = [], []
    for row in rows:
        try:
            records.append(_parse_row(row))
        except _BadRowError as error:
            faults.append(f"{row.source}: {error}")
    if faults:
        summary = f"{source}: {len(faults)} of {len(rows)} rows are not usable; valid rows hold {_VALID_ROWS}"
        raise DataError(f"{summary}\n{_listing(faults)}")
    if not records:
        raise DataError(f"{source}: no records; valid rows hold {_VALID_ROWS}")
    return records


def load_rows(
    source: str | Path, *, split: str | None = None, limit: int | None = None
) -> list[tuple[str, Mapping[str, object]]]:
    """Rows as they are, each with where it was read ("path/to/file.jsonl:12"), for data with fields of their own.

    Arguments and errors as of `load_records`, but that every row must only be an object.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; valid: 1 or more, or none for all rows")
    rows = list(itertools.islice(_open(source, split), limit))
    faults = [f"{row.source}: {row.fault or f'the row is {_seen(row.value)}'}" for row in rows if not _is_object(row)]
    if faults:
        raise DataError(f"{source}: {len(faults)} of {len(rows)} rows are not objects with named fields\n{_listing(faults)}")
    if not rows:
        raise DataError(f"{source}: no rows")
    return [(row.source, row.value) for row in rows if isinstance(row.value, Mapping)]


def _is_object(row: _Row) -> bool:
    return not row.fault and isinstance(row.value, Mapping)


def _listing(lines: Sequence[str]) -> str:
    """The first lines, indented, and how many more there are."""
    more = [f"... and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    return "\n".join(f"  {line}" for line in [*lines[:MAX_LISTED], *more])


def _open(source: str | Path, split: str | None) -> Iterator[_Row]:
    """The rows of a source, whichever kind it is."""
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


def _path_rows(path: Path) -> Iterator[_Row]:
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


def _jsonl_rows(path: Path) -> Iterator[_Row]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        value, fault = None, ""
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            fault = f"not JSON: {error.msg} at column {error.colno}: {_shorten(line.strip())}; valid: an object per line"
        except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
            fault = f"not JSON that can be read: {error}; valid: an object per line"
        yield _Row(f"{path}:{number}", f"{path.name}:{number}", value, fault)


def _json_rows(path: Path) -> Iterator[_Row]:
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
        raise DataError(f'{path}: holds {_seen(value)}; valid: a list of objects, or {{"data": [...]}}')
    yield from _numbered_rows(rows, str(path), path.name)


def _numbered_rows(rows: Iterable[object], label: str, name: str) -> Iterator[_Row]:
    for number, value in enumerate(rows, start=1):
        yield _Row(f"{label}:row {number}", f"{name}:{number}", value)


def _csv_rows(path: Path) -> Iterator[_Row]:
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
            f"{path}:{lines[0][0]}: the header holds the columns {_seen(header)}; the first line must name the "
            f"columns; valid: {_VALID_ROWS}, separated by commas"
        )
    for number, cells in lines[1:]:
        fault = f"the number of cells is {len(cells)}; valid: {len(header)}, as in the header"
        fault = "" if len(cells) == len(header) else fault
        yield _Row(f"{path}:{number}", f"{path.name}:{number}", dict(zip(header, cells)), fault)


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


def _parquet_rows(path: Path) -> Iterator[_Row]:
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


def _directory_rows(path: Path) -> Iterator[_Row]:
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


def _text_file_row(path: Path, document: str) -> _Row:
    return _Row(str(path), document, {"text": _read_text(path).replace("\r\n", "\n")})


def _hub_rows(source: str, split: str | None) -> Iterator[_Row]:
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


# --- one row to one record -------------------------------------------------------------------------------------------


def _parse_row(row: _Row) -> Record:
    if row.fault:
        raise _BadRowError(row.fault)
    if not isinstance(row.value, Mapping):
        raise _BadRowError(f"the row is {_seen(row.value)}; valid: an object with named fields")
    fields = row.value
    where = {"document": _parse_document(fields.get("document"), row.document), "source": row.source}
    shape = _shape(fields)
    if shape == ("text",):
        return Record.from_text(_parse_text(fields["text"], "field 'text'"), **where)
    if shape == ("messages",):
        return Record.from_messages(_parse_chat(fields["messages"], "field 'messages'"), **where)
    if shape == ("question", "answer"):
        question, answer = (_parse_text(fields[name], f"field {name!r}") for name in shape)
        return Record.from_question(question, answer, **where)
    return _parse_completion(fields["prompt"], fields["completion"], where)


def _shape(fields: Mapping[str, object]) -> tuple[str, ...]:
    """The one shape whose fields the row holds. Null counts as absent, as in tables of mixed rows."""
    complete = [shape for shape in SHAPES if all(fields.get(name) is not None for name in shape)]
    if len(complete) == 1:
        return complete[0]
    if complete:
        both = " and ".join(" + ".join(shape) for shape in complete)
        raise _BadRowError(f"the row holds {both}; valid: one of {_VALID_ROWS}")
    for shape in SHAPES:
        missing = [name for name in shape if fields.get(name) is None]
        if any(name in fields for name in shape):
            state = "null" if missing[0] in fields else "missing"
            raise _BadRowError(f"field {missing[0]!r} is {state}; valid: {' + '.join(shape)}, each with a value")
    seen = ", ".join(map(str, fields)) or "none"
    raise _BadRowError(f"no field is known, fields seen: {_shorten(seen)}; valid: {_VALID_ROWS}")


def _parse_document(value: object, default: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return default
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _BadRowError(f"field 'document' is {_seen(value)}; valid: a string or a whole number, or absent")
    return _parse_text(str(value), "field 'document'")


def _parse_text(value: object, name: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise _BadRowError(f"{name} is {_seen(value)}; valid: a string with text")
    surrogate = next((char for char in value if "\ud800" <= char <= "\udfff"), None)
    if surrogate is not None:
        at = f"at character {value.index(surrogate)}"
        raise _BadRowError(f"{name} has half of a surrogate pair, {surrogate!r}, {at}; valid: Unicode text")
    if not value.strip() and not may_be_empty:
        raise _BadRowError(f"{name} has no text: {_shorten(repr(value))}; valid: a string with text")
    return value


def _parse_completion(prompt: object, completion: object, where: dict[str, str]) -> Record:
    if isinstance(prompt, list) and isinstance(completion, list):
        turns = [*_parse_messages(prompt, "field 'prompt'"), *_parse_messages(completion, "field 'completion'")]
        return Record.from_messages(_check_chat(turns, "fields 'prompt' + 'completion'"), **where)
    if isinstance(prompt, list) or isinstance(completion, list):
        kinds = f"{type(prompt).__name__} and {type(completion).__name__}"
        raise _BadRowError(f"fields 'prompt' and 'completion' are {kinds}; valid: two strings or two message lists")
    prompt = _parse_text(prompt, "field 'prompt'", may_be_empty=True)
    return Record.from_completion(prompt, _parse_text(completion, "field 'completion'"), **where)


def _parse_chat(value: object, name: str) -> list[Message]:
    return _check_chat(_parse_messages(value, name), name)


def _parse_messages(value: object, name: str) -> list[Message]:
    valid = "valid: a list of objects with role and content"
    if not isinstance(value, list) or not value:
        raise _BadRowError(f"{name} is {_seen(value)}; {valid}")
    messages = []
    for number, item in enumerate(value, start=1):
        label = f"{name}, message {number}"
        if not isinstance(item, Mapping):
            raise _BadRowError(f"{label} is {_seen(item)}; {valid}")
        role = item.get("role")
        if role not in get_args(Role):
            raise _BadRowError(f"{label}: role is {_seen(role)}; valid: {', '.join(get_args(Role))}")
        messages.append(Message(str(role), _parse_text(item.get("content"), f"{label}: content")))
    return messages


def _check_chat(messages: list[Message], name: str) -> list[Message]:
    roles = [message.role for message in messages]
    if roles[-1] != "assistant":
        raise _BadRowError(f"{name}: the last message is from {roles[-1]!r}; valid: the last one is from 'assistant'")
    if "user" not in roles:
        raise _BadRowError(f"{name}: the roles are {', '.join(roles)}; valid: at least one message from 'user'")
    if "system" in roles[1:]:
        number = roles.index("system", 1) + 1
        raise _BadRowError(f"{name}: message {number} is from 'system'; valid: only the first one")
    return messages


def _seen(value: object) -> str:
    """A value as an error shows it: shortened, with its type."""
    return "null" if value is None else f"{_shorten(repr(value))} ({type(value).__name__})"


# --- sets of records -------------------------------------------------------------------------------------------------


class RecordSets(NamedTuple):
    """Record sets that share no record, and a message for each record that was dropped to make them so."""

    forget: list[Record]
    retain: list[Record]
    holdout: list[Record]
    dropped: list[str]


def check_records(
    forget: Sequence[Record],
    retain: Sequence[Record],
    holdout: Sequence[Record] | None = None,
    *,
    drop_overlap: bool = False,
) -> RecordSets:
    """Check that no record occurs twice: within a set, in forget and retain, or in holdout and one of the others.

    Records are compared by `Record.key`: kind and text, with Unicode NFC normalisation and every run of white space
    taken as one space; `document` and `source` don't count.

    Args:
        forget: what to forget.
        retain: what to keep; empty where background text stands in for it.
        holdout: what no model has seen; None for none.
        drop_overlap: drop what occurs twice, with a warning, instead of refusing it: the first of the duplicates in a
            set is kept, the forget request wins over retain, and both win over holdout.

    Returns:
        The sets; `holdout` is empty if none was given.

    Raises:
        DataError: something occurs twice and `drop_overlap` is off, there is nothing to forget, or a set is empty after dropping.
    """
    owners: dict[str, tuple[str, str]] = {}
    given = {"forget": forget, "retain": retain, "holdout": holdout or ()}
    kept: dict[str, list[Record]] = {}
    dropped: list[str] = []
    for name, records in given.items():
        kept[name], messages = _drop_known(name, records, owners)
        dropped += messages
    if dropped and not drop_overlap:
        raise DataError(
            f"{len(dropped)} records occur more than once; valid: every record once, in one set. "
            f"Remove them, or drop them with --drop-overlap (drop_overlap=True)\n{_listing(dropped)}"
        )
    for name, records in given.items():
        if records and not kept[name]:
            raise DataError(f"{name}: all {len(records)} records occur elsewhere and were dropped\n{_listing(dropped)}")
        if not records and name == "forget":
            raise DataError(f"{name}: no records; valid: at least one")
    if dropped:
        logger.warning("dropped %d records that occur more than once", len(dropped))
        for message in dropped:
            logger.info("dropped %s", message)
    return RecordSets(**kept, dropped=dropped)


def _drop_known(name: str, records: Sequence[Record], owners: dict[str, tuple[str, str]]) -> tuple[list[Record], list[str]]:
    """The records whose key has no owner yet, which they become, and a message for each of the others."""
    kept, messages = [], []
    for record in records:
        key = record.key
        if key in owners:
            owner, source = owners[key]
            how = "repeats" if owner == name else f"is also in {owner},"
            messages.append(f"{name} {record.source} {how} {source}")
        else:
            owners[key] = (name, record.source)
            kept.append(record)
    return kept, messages
