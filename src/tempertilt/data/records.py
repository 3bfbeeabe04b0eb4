"""Records: what to forget and what to keep, as text, read from files or from the Hugging Face hub and validated.

A record is a chat, a prompt with its completion, or plain text. A row of a file is one record; its fields say which kind
(`fields.SHAPES`), and optionally its `document`.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tempertilt.data.fields import VALID_ROWS, Columns, check_columns
from tempertilt.data.record import Kind, Message, Record, Role, shown
from tempertilt.data.rows import BadRowError, parse_row
from tempertilt.data.sources import Row, open_rows
from tempertilt.errors import ConfigError, DataError

__all__ = ["Kind", "Message", "Record", "RecordSets", "Role", "check_records", "load_all", "load_records", "load_rows"]

logger = logging.getLogger("tempertilt")

MAX_LISTED = 10
"""Errors list at most this many rows or records."""


# --- loading ---------------------------------------------------------------------------------------------------------


def load_records(
    source: str | Path, *, split: str | None = None, limit: int | None = None, columns: Columns | None = None
) -> list[Record]:
    """Read records, in the order of the file.

    Args:
        source: a .jsonl, .ndjson, .json (a list of objects, or `{"data": [...]}`), .csv, .tsv or .parquet file; a text file
            or a directory of text files (.txt and .md, recursive, sorted, hidden ones left out; one record per file);
            or the name of a Hugging Face dataset, `org/name`, `org/name:config` or `org/name:config:split`. An existing
            path always wins; a `Path`, a known suffix, or a name not of the form org/name is never looked up on the
            hub.
        split: the split of a Hugging Face dataset; by default its only one, or "train".
        limit: take only the first `limit` rows.
        columns: the column of each field that is not named as in `fields.FIELDS`, such as `{"question": "Frage"}`. Where the
            source has no column of that name, the field's own name counts. Names are compared without regard to case.

    Returns:
        At least one record. `document` is the field of that name, or else unique to the record: the file's name and the
        line or row number, or a text file's path within its directory.

    Raises:
        DataError: the source cannot be read, holds no record, or holds rows that are not records (up to ten are
            listed).
        ConfigError: `limit` is less than 1, `columns` names a field that is none, or `split` does not apply.
        MissingExtraError: Parquet or the hub is asked for without the `data` extra.
    """
    columns = columns or {}
    check_columns(columns)
    rows = _read_rows(source, split, limit, columns)
    records, faults = [], []
    for row in rows:
        try:
            records.append(parse_row(row, columns))
        except BadRowError as error:
            faults.append(f"{row.source}: {error}")
    if faults:
        summary = f"{source}: {len(faults)} of {len(rows)} rows are not usable; a row must hold {VALID_ROWS}"
        raise DataError(f"{summary}\n{_listing(faults)}")
    if not records:
        raise DataError(f"{source}: no records; a row must hold {VALID_ROWS}")
    return records


def load_all(sources: Sequence[str | Path], *, limit: int | None = None, columns: Columns | None = None) -> list[Record]:
    """The records of several sources, one after the other; arguments and errors as of `load_records`, for each of them."""
    return [record for source in sources for record in load_records(source, limit=limit, columns=columns)]


def load_rows(
    source: str | Path, *, split: str | None = None, limit: int | None = None, columns: Columns | None = None
) -> list[tuple[str, Mapping[str, object]]]:
    """Rows as they are, each with where it was read ("path/to/file.jsonl:12"), for data with fields of their own.

    Arguments and errors as of `load_records`, but that every row must only be an object; `columns` only tells which names the
    header of a .csv file must have.
    """
    rows = _read_rows(source, split, limit, columns or {})
    faults = [f"{row.source}: {row.fault or f'the row is {shown(row.value)}'}" for row in rows if not _is_object(row)]
    if faults:
        raise DataError(f"{source}: {len(faults)} of {len(rows)} rows are not objects with named fields\n{_listing(faults)}")
    if not rows:
        raise DataError(f"{source}: no rows")
    return [(row.source, row.value) for row in rows if isinstance(row.value, Mapping)]


def _read_rows(source: str | Path, split: str | None, limit: int | None, columns: Columns) -> list[Row]:
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; must be a whole number >= 1, or absent for all records")
    return list(itertools.islice(open_rows(source, split, columns), limit))


def _is_object(row: Row) -> bool:
    return not row.fault and isinstance(row.value, Mapping)


def _listing(lines: Sequence[str]) -> str:
    """The first lines, indented, and how many more there are."""
    more = [f"... and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    return "\n".join(f"  {line}" for line in [*lines[:MAX_LISTED], *more])


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
        retain: what stays; empty where background text stands in for it.
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
    unique: dict[str, list[Record]] = {}
    dropped: list[str] = []
    for name, records in given.items():
        unique[name], messages = _drop_known(name, records, owners)
        dropped += messages
    if dropped and not drop_overlap:
        raise DataError(
            f"{len(dropped)} records occur more than once; must be once, in one set. "
            f"Remove them, or drop them with --drop-overlap (drop_overlap=True)\n{_listing(dropped)}"
        )
    for name, records in given.items():
        if records and not unique[name]:
            raise DataError(f"{name}: all {len(records)} records occur elsewhere and were dropped\n{_listing(dropped)}")
        if not records and name == "forget":
            raise DataError(f"{name}: no records; must be at least one")
    if dropped:
        logger.warning("dropped %d records that occur more than once", len(dropped))
        for message in dropped:
            logger.info("dropped %s", message)
    return RecordSets(**unique, dropped=dropped)


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
