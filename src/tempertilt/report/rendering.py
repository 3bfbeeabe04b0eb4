"""Pages from Jinja2 templates. Every value is escaped, so texts of models, records and users are shown and never act."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

SHARED = Path(__file__).parent / "templates"
"""The frame, the style and the figures of reports; templates of any folder may include them."""


def render(folder: Path, template: str, **values: Any) -> str:
    """A template of a folder as text.

    Raises:
        jinja2.UndefinedError: the template names a value that is not given.
    """
    return _environment(folder).get_template(template).render(**values)


@cache
def _environment(folder: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, SHARED]),
        autoescape=True,
        finalize=_inert,
        undefined=jinja2.StrictUndefined,
    )


def _inert(value: Any) -> Markup:
    """A value as HTML, in elements and attributes. It is inert also in templates that a browser fills: ${…}, {{…}}, `…`."""
    if isinstance(value, Markup):
        return value
    return Markup(re.sub(r"[${}`\\]", lambda match: f"&#{ord(match[0])};", str(escape(value))))
