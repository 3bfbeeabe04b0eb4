"""Ordinary prompts, whose answers should stay what they were: MT-bench, Vicuna bench, XSTest, or any others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tempertilt import metrics
from tempertilt.data.batches import spread
from tempertilt.data.records import load_rows
from tempertilt.errors import DataError
from tempertilt.suites.families import OWN, gate_open, unchanged
from tempertilt.suites.items import Item, Plan
from tempertilt.suites.suite import Data, Metric, Suite, SuiteConfig, local_directory, text_of

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
FIELDS = ("prompt", "question")


def load_chat(source: str | Path | None, config: SuiteConfig) -> Data:
    """Prompts of a first turn.

    Args:
        source: a directory of tables (.jsonl, .json, .csv, .tsv, .parquet), or a data set on the hub. A row has `turns` (a list,
            whose first is asked), or a `prompt` or `question`; a `label` (as XSTest's safe, unsafe) tells groups of a file apart.

    Raises:
        DataError: there are no tables, or a row has no prompt.
    """
    if source is None:
        raise DataError("the suite chat needs --data-dir: a directory of tables with prompts, or a dataset on the hub")
    directory = local_directory(source, "tables of prompts, as .jsonl or .csv")
    names = [str(source)] if directory is None else sorted(p for p in directory.iterdir() if p.suffix.lower() in SUFFIXES)
    if not names:
        raise DataError(f"{str(directory)!r} has no table; must have at least one of {', '.join(SUFFIXES)}")
    items = [_item(Path(name).stem, where, row) for name in names for where, row in load_rows(name, columns={"text": "prompt"})]
    return {"chat": items if config.limit is None else spread(items, config.limit)}


def _item(table: str, where: str, row: Mapping[str, object]) -> Item:
    turns = row.get("turns")
    if isinstance(turns, list):
        row = {"prompt": turns[0] if turns else ""}
    field = next((name for name in FIELDS if name in row), FIELDS[0])
    label = row.get("label")
    return Item(text_of(row, field, where, "prompts"), "", None, (), where, group=f"{table} {label}" if label else table)


SUITE = Suite(
    name="chat",
    description="ordinary prompts (MT-bench, XSTest, any others): share under an open gate, share of unchanged greedy answers",
    source="https://arxiv.org/abs/2306.05685",
    config=SuiteConfig,
    load=load_chat,
    splits=("chat",),
    plan=Plan(generated=("chat",), token_level=(), drawn=(), gated=("chat",)),
    metrics=(
        gate_open("chat", "ordinary prompts", False),
        unchanged("chat", "chat", "ordinary prompts"),
        Metric("chat_ended", "share of greedy answers that end by themselves", OWN, lambda c: metrics.ended(c.of("chat"))),
    ),
    measuring={"max_new_tokens": 64},
)
