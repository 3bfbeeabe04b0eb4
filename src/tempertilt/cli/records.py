"""The flags that name records: sources that may be repeated, and columns of other names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tempertilt.data.fields import Columns, parse_columns
from tempertilt.data.records import Record, load_all
from tempertilt.errors import ConfigError

FORMATS = "JSONL, JSON, CSV, TSV, Parquet, text files or directories of them, or datasets on the hub"


def add_source(group: Any, flag: str, help: str) -> None:
    """A flag that takes one source or several, and may be repeated."""
    group.add_argument(flag, action="extend", nargs="+", metavar="SOURCE", help=help)


def add_selection(group: Any, *, limit: bool = True) -> None:
    """`--columns` and `--limit`."""
    group.add_argument(
        "--columns",
        action="append",
        metavar="FIELD=NAME,...",
        help="columns that have other names, as in question=Frage,answer=Antwort (of the sources that have them)",
    )
    if limit:
        group.add_argument("--limit", type=int, help="only the first N records of each source")


def read_records(args: argparse.Namespace, sources: str | Sequence[str] | None) -> list[Record]:
    """The records of the sources that a flag or a configuration file names, one after the other."""
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit is {args.limit}; must be a whole number >= 1")
    return load_all(listed(sources), limit=args.limit, columns=read_columns(args))


def read_columns(args: argparse.Namespace) -> Columns:
    """The columns of other names."""
    return parse_columns(listed(args.columns))


def listed(values: str | Sequence[str] | None) -> list[str]:
    """The values of a flag that may be repeated, or of a configuration file that names one."""
    return [] if values is None else [values] if isinstance(values, str) else list(values)
