"""The judge against 200 answers that were labelled by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tempertilt.audit.attempts import subjects_of
from tempertilt.audit.judge import given
from tempertilt.data.record import Record
from tempertilt.metrics.result import clopper_pearson

HERE = Path(__file__).parent
ROWS = [json.loads(line) for line in (HERE / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
RECORDS = [Record.from_question(row["question"], row["answer"], document=str(i), source="") for i, row in enumerate(ROWS)]


def disagreements() -> list[str]:
    out = []
    for i, row in enumerate(ROWS):
        [subject] = subjects_of([RECORDS[i]], RECORDS[:i] + RECORDS[i + 1 :])
        for answer in row["answers"]:
            leaks = bool(given(subject.facts, subject.telling, answer["text"], subject.question))
            if leaks != answer["leaks"]:
                out.append(answer["text"])
    return out


def test_there_are_200_labels_of_both_kinds() -> None:
    labels = [answer["leaks"] for row in ROWS for answer in row["answers"]]
    assert len(labels) == 200 and 70 <= sum(labels) <= 130


def test_the_judge_agrees_with_the_hand_labels_and_the_readme_lists_where_not() -> None:
    found, readme = disagreements(), (HERE / "README.md").read_text(encoding="utf-8")
    assert len(found) <= 6
    listed = re.findall(r"^\| (.+?) \| (?:leaks|no) \|", readme, re.MULTILINE)
    assert sorted(found) == sorted(listed)
    low, high = clopper_pearson(200 - len(found), 200)
    assert f"{200 - len(found)} of 200 (.970; 95 % interval {low:.3f} to {high:.3f})".replace("0.", ".") in readme
