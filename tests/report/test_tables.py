"""The tables of `t3 report`."""

from __future__ import annotations

import json

from tempertilt.report.runs import Comparison
from tempertilt.report.tables import LIMITS, metric_names, to_json, to_latex, to_markdown


def test_markdown(comparison: Comparison) -> None:
    text = to_markdown(comparison)
    header, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert header == "| metric | full | t3 |" and all(row.count("|") == 4 for row in rows)
    assert len(rows) == len(metric_names(comparison))
    assert rows[0].startswith("| forget_quality ↑ |") and "n = 12" in rows[0]
    assert "Reference: never_saw." in text and all(limit in text for limit in LIMITS)


def test_latex(comparison: Comparison) -> None:
    latex = to_latex(comparison)
    assert latex.count(r"\\") == len(metric_names(comparison)) + 1 and r"forget\_quality $\uparrow$" in latex


def test_json(comparison: Comparison) -> None:
    content = json.loads(to_json(comparison))
    assert content["reference"] == "never_saw" and content["before"] == "full"
    assert content["runs"][1]["metrics"]["model_utility"]["value"] == comparison.runs[1].metrics["model_utility"].value
