"""The fields of a row that mean something, and which column of a table is which field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tempertilt.errors import ConfigError

SHAPES = (
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "chosen"),
    ("messages",),
    ("conversations",),
    ("instruction", "output"),
    ("text",),
)
"""The fields that make a row a record; a row has exactly one of these shapes."""

FIELDS = (*dict.fromkeys(field for shape in SHAPES for field in shape), "input", "history", "system", "document")
"""All fields that are read. A row may have others beside them."""

VALID_ROWS = f"{', '.join(' + '.join(shape) for shape in SHAPES[:-1])} or text (document is optional)"

Columns = Mapping[str, str]
"""The column of a table for each field that is not named as we name it: `{"question": "Frage", "answer": "Antwort"}`."""


def check_columns(columns: Columns) -> None:
    """`ConfigError` if a field is none of ours."""
    for field in columns:
        if field not in FIELDS:
            raise ConfigError(f"columns names the field {field!r}; must be one of {', '.join(FIELDS)}")


def match_fields(names: Iterable[str], columns: Columns) -> dict[str, list[str]]:
    """The columns of a table that are a field of ours, by field; more than one where names differ in case or space only.

    A field is the column that `columns` names for it, or, where the table has none of that name, the column of its own name.
    """
    by_name: dict[str, list[str]] = {}
    for name in names:
        by_name.setdefault(_plain(name), []).append(name)
    chosen = {field: by_name[_plain(name)] for field, name in columns.items() if _plain(name) in by_name}
    taken = {name for names in chosen.values() for name in names}
    own = {field: [name for name in by_name.get(field, []) if name not in taken] for field in FIELDS}
    return {field: names for field, names in {**own, **chosen}.items() if names}


def _plain(name: str) -> str:
    return name.strip().casefold()


def has_shape(names: Iterable[str], columns: Columns) -> bool:
    """Whether a table with these columns can hold records."""
    fields = match_fields(names, columns)
    return any(fields.keys() >= set(shape) for shape in SHAPES) or "chosen" in fields


def parse_columns(texts: Iterable[str]) -> dict[str, str]:
    """The columns in texts such as "question=Frage,answer=Antwort".

    Raises:
        ConfigError: a text is not of this form, or names a field twice or one that is none of ours.
    """
    columns: dict[str, str] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        field, _, name = (piece.strip() for piece in part.partition("="))
        if not field or not name:
            raise ConfigError(f"columns holds {part!r}; must be a field and the name of its column, as in question=Frage")
        if field in columns:
            raise ConfigError(f"columns names the field {field!r} twice; must be named once")
        columns[field] = name
    check_columns(columns)
    return columns
