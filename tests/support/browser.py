"""Headless Chromium, and what axe-core finds in a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def chromium() -> Iterator[Any]:
    """A browser: Playwright's, or else the system's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        found = started.chromium.executable_path
        program = found if Path(found).exists() else shutil.which("chromium")
        if program is None:
            pytest.skip("needs Chromium: playwright install --with-deps chromium, or the package chromium")
        launched = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


def serious_faults(page: Any) -> list[str]:
    """Rules of axe-core that a page breaks, serious and critical ones, with the first element that breaks each."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {rule['nodes'][0]['html']}" for rule in found if rule["impact"] in ("serious", "critical")]
