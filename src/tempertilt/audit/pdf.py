"""The page as PDF, printed by a headless Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tempertilt.errors import TemperTiltError
from tempertilt.storage import write_whole

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
SECONDS = 120


def find_browser() -> str:
    """The first browser of these that is installed; `TemperTiltError` if there is none."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise TemperTiltError(
            f"no browser for --pdf; must be one of {', '.join(BROWSERS)} on the PATH. Or print the page by hand"
        )
    return browser


def print_pdf(page: Path) -> Path:
    """Print a page into a PDF of the same name beside it.

    Raises:
        TemperTiltError: there is no browser, or it fails; it says what to do.
    """
    browser = find_browser()
    target = page.with_suffix(".pdf")

    def write(temporary: Path) -> None:
        with tempfile.TemporaryDirectory() as profile:
            options = ["--headless", "--disable-gpu", "--no-pdf-header-footer", f"--user-data-dir={profile}"]
            options += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # Chromium refuses root with one
            command = [browser, *options, f"--print-to-pdf={temporary.resolve()}", page.resolve().as_uri()]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
            except (subprocess.SubprocessError, OSError) as error:
                raise TemperTiltError(f"{browser} could not print {str(page)!r} ({error}); print it by hand") from error
        if not temporary.stat().st_size:
            raise TemperTiltError(f"{browser} wrote no PDF of {str(page)!r}; print it by hand")

    write_whole(target, write)
    return target
