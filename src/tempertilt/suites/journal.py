"""A journal of finished units of work: a killed run goes on after the last one that was written whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tempertilt.data.lines import json_text
from tempertilt.errors import TemperTiltError


class Journal:
    """Units by name in a file of JSON lines, the first of which holds the run's key.

    A line that a killed process left unfinished is cut off.

    Args:
        path: the file; made on the first `add`.
        key: of the run.

    Raises:
        TemperTiltError: the file is of another run.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        self.units: dict[str, Any] = {}
        whole = self._read()
        if path.is_file() and path.stat().st_size != whole:
            with path.open("r+b") as file:
                file.truncate(whole)

    def _read(self) -> int:
        """Read the units; return how many bytes of the file are theirs."""
        if not self.path.is_file():
            return 0
        whole = 0
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1]):  # what follows the last end was cut off
            try:
                entry = json.loads(line)
                if number == 0 and entry["key"] != self.key:
                    raise TemperTiltError(
                        f"{str(self.path)!r} is of an unfinished run with another model, other data or other options; name "
                        "another directory, or take its place with --overwrite"
                    )
                if number:
                    self.units[entry["unit"]] = entry["value"]
            except (ValueError, LookupError, TypeError, RecursionError):
                break
            whole += len(line) + 1
        return whole

    def add(self, unit: str, value: Any) -> None:
        """Write a unit through to the disk."""
        lines = [] if self.units else [{"key": self.key}]
        text = "".join(json_text(line) + "\n" for line in [*lines, {"unit": unit, "value": value}])
        try:
            with self.path.open("ab" if self.units else "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TemperTiltError(f"cannot write {str(self.path)!r}: {error.strerror or error}") from error
        self.units[unit] = value

    def remove(self) -> None:
        """Take the file away: its units are in the results."""
        self.path.unlink(missing_ok=True)
