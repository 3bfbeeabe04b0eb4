"""The page of `t3 report`: it is whole, it needs nothing from elsewhere, and no text of a model acts in it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy.stats import ks_2samp

from support.runs import EVIL, write_run
from tempertilt.metrics import truth_ratios
from tempertilt.report.html import LONGEST, clipped, differences, to_html
from tempertilt.report.runs import Comparison, compare


class Page(HTMLParser):
    """Tags, addresses and text of a page, and the elements that are not closed."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def text(comparison: Comparison) -> str:
    return to_html(comparison)


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(text: str) -> None:
    page = Page(text)
    assert not page.open and not page.addresses and "script" not in page.tags and "link" not in page.tags
    assert "url(" not in text and "@import" not in text
    assert page.tags.count("svg") == 2 + 1 + 2, "two distributions, the plane, two shifts"
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(svg)
        assert "nan" not in svg and "inf" not in svg
    for expected in ("Forget quality", "prefers-color-scheme: dark", "still hold the knowledge", "never_saw"):
        assert expected in text


def test_texts_of_models_are_shown_and_do_not_act(text: str) -> None:
    page = Page(text)
    assert EVIL not in text
    assert any(shown == f" 3 {EVIL}" for shown in page.texts) and page.tags.count("mark") == 16, "one word of each answer differs"


def test_the_times_of_a_step_are_added_over_the_splits(text: str) -> None:
    assert text.count("8 s in all, likelihood 4 s, greedy 4 s; peak memory 5 MiB") == 2


def test_the_marked_gap_is_the_ks_statistic(comparison: Comparison, text: str) -> None:
    after, reference = comparison.runs[1].results, comparison.reference
    assert reference is not None
    ratios = [[ratio for ratio in truth_ratios(results["forget"]) if ratio] for results in (after, reference)]
    assert f"D = {ks_2samp(*ratios).statistic:.3f}" in text


def test_one_run_without_a_reference(tmp_path: Path) -> None:
    text = to_html(compare([write_run(tmp_path / "alone", 0.3, 9)]))
    assert not Page(text).open and "No reference" in text and "Not computed" in text


@pytest.mark.parametrize(
    ("before", "after", "parts"),
    [
        ("a b c", "a x c", [("a ", False), ("x", True), (" c", False)]),
        (None, "<b>", [("<b>", False)]),
        ("same text", "same text", [("same text", False)]),
        ("a", "a <i>", [("a", False), (" <i>", True)]),
        ("a b", "a", [("a", False)]),
        ("", "", []),
    ],
)
def test_differences(before: str | None, after: str, parts: list[tuple[str, bool]]) -> None:
    assert differences(before, after) == parts


def test_a_long_answer_is_cut_between_words() -> None:
    assert clipped("word " * 10) == "word " * 10
    cut = clipped("word " * 200)
    assert cut.endswith("word …") and len(cut) <= LONGEST + 2
