"""Records of an adapter's report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tempertilt.playground.records import ReportRecord, report_records


def test_records_of_the_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert report_records(tmp_path) == [] == report_records("org/name")
    answers = [{"set": "forget", "source": "f:1", "question": "Who?", "truth": "She.", "before": "", "after": ""}]
    (tmp_path / "unlearn.json").write_text(json.dumps({"answers": [*answers, answers[0] | {"question": " "}]}))
    assert report_records(tmp_path) == [ReportRecord("forget", "Who?", "She.")]
    for damaged in ("{", '{"answers": [3]}', '{"answers": 3}', "[]"):
        (tmp_path / "unlearn.json").write_text(damaged)
        assert report_records(tmp_path) == []
    assert "no examples" in caplog.text
