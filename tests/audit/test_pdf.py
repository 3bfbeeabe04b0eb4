"""Printing by a browser that is there, fails, or is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tempertilt.audit.pdf import BROWSERS, print_pdf
from tempertilt.errors import TemperTiltError


@pytest.fixture()
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin.without:/bin")
    (tmp_path / "bin").mkdir()
    path = tmp_path / "a page.html"
    path.write_text("<p>x</p>")
    return path


def browser(folder: Path, script: str) -> None:
    program = folder / "bin" / BROWSERS[0]
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_the_browser_is_told_what_to_print(page: Path, tmp_path: Path) -> None:
    browser(tmp_path, 'for a in "$@"; do case "$a" in --print-to-pdf=*) echo "$@" > "${a#--print-to-pdf=}";; esac; done')
    target = print_pdf(page)
    assert target == tmp_path / "a page.pdf" and f"file://{tmp_path}/a%20page.html" in target.read_text()


@pytest.mark.parametrize(("script", "message"), [("exit 3", "could not print"), ("exit 0", "wrote no PDF")])
def test_a_browser_that_fails(page: Path, tmp_path: Path, script: str, message: str) -> None:
    browser(tmp_path, script)
    with pytest.raises(TemperTiltError, match=message):
        print_pdf(page)
    assert not (tmp_path / "a page.pdf").exists()


def test_no_browser(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TemperTiltError, match="no browser for --pdf; must be one of chromium"):
        print_pdf(page)
