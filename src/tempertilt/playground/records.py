"""Records of an adapter's report as things to try."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

from tempertilt.fitting.result import REPORT

log = logging.getLogger("tempertilt")


class ReportRecord(NamedTuple):
    """A record whose answers the report shows: its set (forget, retain, holdout), question, and true answer."""

    set: str
    question: str
    truth: str


def report_records(adapter: str | Path) -> list[ReportRecord]:
    """The records in the report beside a local adapter; none where there is no report, or none that can be read."""
    path = Path(adapter).expanduser() / REPORT
    if not path.is_file():
        return []
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))["answers"]
        records = [ReportRecord(*(str(item[name]) for name in ReportRecord._fields)) for item in answers]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s can't be read (%s): the playground has no examples", path, error)
        return []
    return [record for record in records if record.question.strip()]
