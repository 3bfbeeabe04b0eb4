"""The folders of a ledger that are no part of the record: what can be used again, and what is being made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tempertilt.storage import locked, make_dir, remove_directory, when_unlocked

CACHE, WORK = "cache", "work"


@contextmanager
def work_folder(directory: Path) -> Iterator[Path]:
    """An empty folder in a ledger's directory, which is deleted at the end; no other process has one at the same time."""
    work = make_dir(directory) / WORK
    with locked(work, "adding a request"):
        remove_directory(work)
        work.mkdir()
        try:
            yield work
        finally:
            remove_directory(work)


def clear_work(directory: Path) -> None:
    """Delete the work folder that a killed process has left."""
    with when_unlocked(directory / WORK) as free:
        if free:
            remove_directory(directory / WORK)
