"""The pages of reports in headless Chromium: what axe-core finds, widths, and that nothing moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="needs the extra ui-test: pip install '.[ui-test]'")
pytest.importorskip("axe_playwright_python", reason="needs the extra ui-test: pip install '.[ui-test]'")

from support.audits import audit_of, judgement
from support.bench_rows import make_row
from support.browser import chromium, serious_faults
from tempertilt.audit.collateral import Effect
from tempertilt.audit.page import Request
from tempertilt.audit.page import to_html as audit_page
from tempertilt.audit.summary import summarise
from tempertilt.audit.texts import read_letter
from tempertilt.bench.page import to_html as bench_page
from tempertilt.report.html import to_html as report_page
from tempertilt.report.runs import Comparison

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from chromium()


@pytest.fixture(scope="module")
def pages(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    rows = [judgement(i % 7, i < 3) for i in range(200)]
    audit = summarise(
        audit_of(
            {"spellings": rows, "sampling": rows[:8]},
            before=rows[:3],
            effects={"everyday": [Effect(False, False, False, False, None, None, True)]},
        )
    )
    board = [make_row("t3", 0.6, 0.03, 5.0), make_row("A", 0.4, 0.04, 100.0), make_row("target", 0.0, 0.01, 0.0, method="target")]
    texts = {
        "report": report_page(comparison),
        "audit": audit_page(audit, Request(asked_by="Frau Q."), read_letter(None), today="2026-03-01"),
        "leaderboard": bench_page(board, "A title"),
    }
    folder = tmp_path_factory.mktemp("pages")
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("name", ["report", "audit", "leaderboard"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1600])
def test_no_serious_fault(browser: Any, pages: dict[str, Path], name: str, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto(pages[name].as_uri())
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.getAnimations().length") == 0
    if name == "report":  # what a figure means is said at every width
        assert all(item.is_visible() for item in page.locator(".headline th[scope=row] small").all())
    context.close()
