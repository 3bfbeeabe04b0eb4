"""Records: what to forget and what to keep, as text, read from files or from the Hugging Face hub and validated.

A record is a chat, a prompt with its completion, or plain text. A row of a file is one record; its fields say which
kind: `question` + `answer`, `prompt` + `completion`, `messages`, or `text`, and optionally `document`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from tempertilt.data.sources import SHAPES, VALID_ROWS, Row, open_rows, seen, shorten
from tempertilt.errors import ConfigError, DataError

logger = logging.getLogger("tempertilt")

Kind = Literal["chat", "completion", "text"]
Role = Literal["system", "user", "assistant"]

MAX_LISTED = 10
"""Errors list at most this many rows or records."""


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
        return self.prompt if self.kind == "completion" else shorten(self.answer, 80)


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


# --- loading ---------------------------------------------------------------------------------------------------------


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
    rows = list(itertools.islice(open_rows(source, split), limit))
    records, faults = [], []
    for row in rows:
        try:
            records.append(_parse_row(row))
        except _BadRowError as error:
            faults.append(f"{row.source}: {error}")
    if faults:
        summary = f"{source}: {len(faults)} of {len(rows)} rows are not usable; valid rows hold {VALID_ROWS}"
        raise DataError(f"{summary}\n{_listing(faults)}")
    if not records:
        raise DataError(f"{source}: no records; valid rows hold {VALID_ROWS}")
    return records


def load_rows(
    source: str | Path, *, split: str | None = None, limit: int | None = None
) -> list[tuple[str, Mapping[str, object]]]:
    """Rows as they are, each with where it was read ("path/to/file.jsonl:12"), for data with fields of their own.

    Arguments and errors as of `load_records`, but that every row must only be an object.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; valid: 1 or more, or none for all rows")
    rows = list(itertools.islice(open_rows(source, split), limit))
    faults = [f"{row.source}: {row.fault or f'the row is {seen(row.value)}'}" for row in rows if not _is_object(row)]
    if faults:
        raise DataError(f"{source}: {len(faults)} of {len(rows)} rows are not objects with named fields\n{_listing(faults)}")
    if not rows:
        raise DataError(f"{source}: no rows")
    return [(row.source, row.value) for row in rows if isinstance(row.value, Mapping)]


def _is_object(row: Row) -> bool:
    return not row.fault and isinstance(row.value, Mapping)


def _listing(lines: Sequence[str]) -> str:
    """The first lines, indented, and how many more there are."""
    more = [f"... and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    return "\n".join(f"  {line}" for line in [*lines[:MAX_LISTED], *more])


# --- one row to one record -------------------------------------------------------------------------------------------


def _parse_row(row: Row) -> Record:
    if row.fault:
        raise _BadRowError(row.fault)
    if not isinstance(row.value, Mapping):
        raise _BadRowError(f"the row is {seen(row.value)}; valid: an object with named fields")
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
        raise _BadRowError(f"the row holds {both}; valid: one of {VALID_ROWS}")
    for shape in SHAPES:
        missing = [name for name in shape if fields.get(name) is None]
        if any(name in fields for name in shape):
            state = "null" if missing[0] in fields else "missing"
            raise _BadRowError(f"field {missing[0]!r} is {state}; valid: {' + '.join(shape)}, each with a value")
    seen = ", ".join(map(str, fields)) or "none"
    raise _BadRowError(f"no field is known, fields seen: {shorten(seen)}; valid: {VALID_ROWS}")


def _parse_document(value: object, default: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return default
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _BadRowError(f"field 'document' is {seen(value)}; valid: a string or a whole number, or absent")
    return _parse_text(str(value), "field 'document'")


def _parse_text(value: object, name: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise _BadRowError(f"{name} is {seen(value)}; valid: a string with text")
    surrogate = next((char for char in value if "\ud800" <= char <= "\udfff"), None)
    if surrogate is not None:
        at = f"at character {value.index(surrogate)}"
        raise _BadRowError(f"{name} has half of a surrogate pair, {surrogate!r}, {at}; valid: Unicode text")
    if not value.strip() and not may_be_empty:
        raise _BadRowError(f"{name} has no text: {shorten(repr(value))}; valid: a string with text")
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
        raise _BadRowError(f"{name} is {seen(value)}; {valid}")
    messages = []
    for number, item in enumerate(value, start=1):
        label = f"{name}, message {number}"
        if not isinstance(item, Mapping):
            raise _BadRowError(f"{label} is {seen(item)}; {valid}")
        role = item.get("role")
        if role not in get_args(Role):
            raise _BadRowError(f"{label}: role is {seen(role)}; valid: {', '.join(get_args(Role))}")
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
