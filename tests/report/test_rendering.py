"""Templates: every value is inert, also where a browser fills templates of its own."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
from markupsafe import Markup

from tempertilt.report.rendering import render

HOSTILE = "<b a='1' b=\"2\"> & ${x} {{y}} `z` \\u003c"


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text.html").write_text('<i title="{{ value }}">{{ value }}</i>')
    (tmp_path / "macro.html").write_text("{% macro inner(v) %}<b>{{ v }}</b>{% endmacro %}{{ inner(value) }}")
    return tmp_path


def test_values_are_escaped_in_elements_and_attributes(folder: Path) -> None:
    from html import unescape

    text = render(folder, "text.html", value=HOSTILE)
    assert text.count("<") == 2 and text.count('"') == 2 and not set("${}`\\") & set(text)
    assert unescape(text) == f'<i title="{HOSTILE}">{HOSTILE}</i>'


def test_a_macro_is_escaped_once_and_markup_never(folder: Path) -> None:
    assert render(folder, "macro.html", value="<") == "<b>&lt;</b>"
    assert render(folder, "text.html", value=Markup("<u>")) == '<i title="<u>"><u></i>'


def test_a_value_that_is_not_given_is_an_error(folder: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="'value' is undefined"):
        render(folder, "text.html")
