"""Reports from run folders: what they show, that they need nothing from outside, and what is refused."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

from tempertilt.cli import main
from tempertilt.errors import DataError
from tempertilt.metrics import Draw, Sample, truth_ratios
from tempertilt.report.figures import cdf_figure, linear_ticks, log_ticks
from tempertilt.report.html import marked, to_html
from tempertilt.report.runs import compare
from tempertilt.report.tables import to_json, to_latex, to_markdown
from tempertilt.storage import file_sha256
from tempertilt.suites.logs import write_samples

EVIL = "<script>alert('x')</script> & \"quotes\""


def samples(n: int, shift: float, seed: int, text: str) -> list[Sample]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        log_probs = tuple((-np.abs(rng.normal(1, 0.5, 6)) - shift).tolist())
        out.append(
            Sample(
                index=i,
                question=f"Question {i}? {EVIL}",
                answer=f"Answer {i}",
                nll=-float(np.mean(log_probs)),
                paraphrase_nll=float(rng.uniform(1, 2)),
                perturbed_nll=tuple((rng.uniform(1, 2, 5) + shift).tolist()),
                log_probs=log_probs,
                hits=(True, False, True, True, shift == 0, True),
                standardised=log_probs,
                generation=f"{text} {i} {EVIL}",
                rouge1_recall=0.5,
                rougeL_recall=0.4,
                rougeL_f1=0.3,
                base_perplexity=3.0,
                draws=(Draw("a", 0.2, 3.0), Draw("b", 0.3, 4.0)),
            )
        )
    return out


def write_run(directory: Path, shift: float, seed: int, *, reference: Path | None = None, n: int = 12) -> Path:
    directory.mkdir()
    splits = ("forget", "retain", "real_authors", "world_facts", "holdout")
    results = {split: samples(n, shift, seed + i, directory.name) for i, split in enumerate(splits)}
    (directory / "samples.jsonl").write_text(write_samples(results))
    content: dict[str, Any] = {"suite": "tofu", "key": "k" * 32, "model": {"model": "m", "digest": "d" * 64}}
    content |= {"reference": None if reference is None else str(reference), "metrics": {}}
    content["samples_sha256"] = file_sha256(directory / "samples.jsonl")
    (directory / "results.json").write_text(json.dumps(content))
    (directory / "timing.json").write_text(
        json.dumps({"seconds": {"likelihood forget": 3.0, "greedy forget": 4.0}, "peak_memory_mib": 5.0})
    )
    (directory / "env.json").write_text(json.dumps({"processor": "P", "cpus": 2, "gpus": [], "packages": {"torch": "2"}}))
    return directory


@pytest.fixture()
def runs(tmp_path: Path) -> list[Path]:
    reference = write_run(tmp_path / "never_saw", 0.9, 50)
    return [write_run(tmp_path / "full", 0.0, 0, reference=reference), write_run(tmp_path / "t3", 1.0, 0, reference=reference)]


class Page(HTMLParser):
    """Tags, addresses and text of a page, and whether every element is closed."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_outside(runs: list[Path]) -> None:
    text = to_html(compare(runs))
    page = Page(text)
    assert not page.open and not page.addresses and "script" not in page.tags and "link" not in page.tags
    assert "url(" not in text and "@import" not in text
    assert page.tags.count("svg") == 2 + 1 + 2, "two distributions, the plane, two shifts"
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(svg)
        assert "nan" not in svg and "inf" not in svg
    for expected in (
        "Forget quality",
        "prefers-color-scheme: dark",
        "still hold the knowledge",
        "never_saw",
        "</mark> 0 &lt;script&gt;",
    ):
        assert expected in text
    assert EVIL not in text


def test_the_marked_gap_is_the_ks_statistic(runs: list[Path]) -> None:
    comparison = compare(runs)
    ratios = [[v for v in truth_ratios(of["forget"]) if v] for of in (comparison.runs[1].results, comparison.reference or {})]
    statistic = ks_2samp(*ratios).statistic
    assert f"D = {statistic:.3f}" in to_html(comparison)
    assert f"D = {statistic:.3f}" in cdf_figure([("a", ratios[0], 0), ("b", ratios[1], 1)], "x", (0, 1))


def test_one_run_without_a_reference(runs: list[Path], tmp_path: Path) -> None:
    alone = write_run(tmp_path / "alone", 0.3, 9)
    text = to_html(compare([alone]))
    assert not Page(text).open and "No reference" in text and "Not computed" in text


def test_tables(runs: list[Path]) -> None:
    comparison = compare(runs)
    markdown = to_markdown(comparison)
    header, _, *rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert header == "| metric | full | t3 |" and all(row.count("|") == 4 for row in rows)
    assert rows[0].startswith("| forget_quality ↑ |") and "n = 12" in rows[0]
    latex = to_latex(comparison)
    assert latex.count(r"\\") == len(rows) + 1 and r"forget\_quality $\uparrow$" in latex
    content = json.loads(to_json(comparison))
    assert content["reference"] == "never_saw" and content["before"] == "full"
    assert content["runs"][1]["metrics"]["model_utility"]["value"] == comparison.runs[1].metrics["model_utility"].value


def test_differences_are_marked_and_escaped() -> None:
    assert marked("a b c", "a x c") == "a <mark>x</mark> c"
    assert marked(None, "<b>") == "&lt;b&gt;"
    assert marked("same text", "same text") == "same text"
    assert marked("a", "a <i>") == "a<mark> &lt;i&gt;</mark>"


def test_ticks() -> None:
    assert [label for _, label in log_ticks(-2.2, 1.1)] == ["0.01", "0.1", "1", "10"]
    assert len(log_ticks(-300.0, 0.0)) <= 8 and len(log_ticks(0.05, 0.4)) >= 2
    assert [label for _, label in linear_ticks(0.0, 1.0)] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_the_command(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *map(str, runs)]) == 0
    assert (runs[1] / "report.html").is_file() and str(runs[1] / "report.html") in capsys.readouterr().out
    assert main(["report", *map(str, runs), "--format", "md", "--output", "-"]) == 0
    assert capsys.readouterr().out.startswith("| metric")
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "has no results.json" in capsys.readouterr().err


def test_what_can_not_be_compared_is_refused(runs: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", 0.0, 0, n=5)
    with pytest.raises(DataError, match="different forget questions"):
        compare([runs[0], other])
    with pytest.raises(DataError, match="twice"):
        compare([runs[0], runs[0]])
    with pytest.raises(DataError, match="at least one"):
        compare([])
    (runs[0] / "results.json").write_text("[]")
    with pytest.raises(DataError, match="holds list"):
        compare(runs)
    (runs[0] / "results.json").write_text('{"suite": "other"}')
    with pytest.raises(DataError, match="suite 'other'"):
        compare(runs)
