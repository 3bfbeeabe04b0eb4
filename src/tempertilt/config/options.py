"""Options: frozen dataclasses whose fields state, in one place, what they are and what they must be."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any

from tempertilt.errors import ConfigError

BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    default_factory: Any = MISSING,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    choices: Sequence[str] | None = None,
    hint: str = "",
    advanced: bool = False,
) -> Any:
    """A field of an `Options` class.

    Args:
        default, default_factory: as of `dataclasses.field`.
        help: what the option does, for `--help`.
        gt, ge, lt, le: bounds of a number (greater than, greater or equal, less than, less or equal).
        choices: the valid texts.
        hint: shown behind the bounds in an error, such as "1 = no tempering".
        advanced: whether the flag is left out of the short help.
    """
    metadata = {"help": help, "gt": gt, "ge": ge, "lt": lt, "le": le, "choices": choices, "hint": hint, "advanced": advanced}
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


class Options:
    """Base of all options: a frozen dataclass checks its values when it is made.

    Raises:
        ConfigError: a value has another type than its field, or lies outside the bounds of its field.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in fields(self):  # type: ignore[arg-type]
            check_option(item, hints[item.name], getattr(self, item.name))


def check_option(item: Field[Any], hint: Any, value: Any) -> None:
    """Raise `ConfigError` unless `value` is of the type `hint` and within the bounds of the field."""
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    if value is None and type(None) in _alternatives(hint):
        return
    if not any(_is_of(value, kind) for kind in kinds) or not _within(value, item.metadata):
        raise ConfigError(f"{item.name} is {value!r}; must be {describe(item, hint)}")


def describe(item: Field[Any], hint: Any) -> str:
    """What a field must be, as an error says it: "a number > 0 (1 = no tempering)"."""
    found = item.metadata
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    if found.get("choices"):
        text = f"one of {', '.join(found['choices'])}"
    else:
        names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        text = " or ".join(names.get(kind, getattr(typing.get_origin(kind) or kind, "__name__", str(kind))) for kind in kinds)
        bounds = [f"{sign} {found[name]:g}" for name, sign in BOUNDS.items() if found.get(name) is not None]
        text += f" {' and '.join(bounds)}" if bounds else ""
    text += " or absent" if type(None) in _alternatives(hint) else ""
    return text + (f" ({found['hint']})" if found.get("hint") else "")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _is_of(value: Any, kind: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is str:
        return isinstance(value, str)
    return True


def _within(value: Any, found: Any) -> bool:
    if found.get("choices") is not None and value not in found["choices"]:
        return False
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return True
    checks = {"gt": lambda bound: value > bound, "ge": lambda bound: value >= bound}
    checks |= {"lt": lambda bound: value < bound, "le": lambda bound: value <= bound}
    return all(check(found[name]) for name, check in checks.items() if found.get(name) is not None)
