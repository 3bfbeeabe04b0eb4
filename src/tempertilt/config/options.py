"""Options: frozen dataclasses whose fields state, in one place, what they are and what they must be."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any

from tempertilt.errors import ConfigError

BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
SHOWN = 200  # characters of a wrong value in an error
PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


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
    """A field of an `Options` class. Bounds and choices of a list or a mapping are those of its members.

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
    if value is None and type(None) in _alternatives(hint):
        return
    if not any(_is_of(value, kind) for kind in _kinds(hint)) or not _within(value, item.metadata):
        raise ConfigError(f"{item.name} is {short(value)}; must be {describe(item, hint)}")


def short(value: object) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def describe(item: Field[Any], hint: Any) -> str:
    """What a field must be, as an error says it: "a number > 0 (1 = no tempering)"."""
    rules = item.metadata
    text = " or ".join(_name(kind, rules.get("choices")) for kind in _kinds(hint))
    if rules.get("choices") and not any(map(_is_container, _kinds(hint))):
        text = f"one of {', '.join(rules['choices'])}"
    bounds = [f"{sign} {rules[name]:g}" for name, sign in BOUNDS.items() if rules.get(name) is not None]
    text += f" {' and '.join(bounds)}" if bounds else ""
    text += " or absent" if type(None) in _alternatives(hint) else ""
    return text + (f" ({rules['hint']})" if rules.get("hint") else "")


def plain_type(hint: Any) -> Any:
    """The type of an option that is not None: int of `int | None`."""
    return _kinds(hint)[0]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _kinds(hint: Any) -> list[Any]:
    return [kind for kind in _alternatives(hint) if kind is not type(None)]


def _is_container(kind: Any) -> bool:
    return typing.get_origin(kind) is not None


def _is_mapping(kind: Any) -> bool:
    return issubclass(typing.get_origin(kind) or object, Mapping)


def _name(kind: Any, choices: Sequence[str] | None) -> str:
    """A type as an error names it: "a whole number", "a list of texts"."""
    if not _is_container(kind):
        return NAMES.get(kind) or str(getattr(kind, "__name__", kind))
    member = _member(kind)
    members = f"any of {', '.join(choices)}" if choices else PLURALS.get(member) or f"{getattr(member, '__name__', 'value')}s"
    return f"a mapping from names to {members}" if _is_mapping(kind) else f"a list of {members}"


def _member(kind: Any) -> Any:
    """The type of the members of a list, or of the values of a mapping."""
    arguments = [argument for argument in typing.get_args(kind) if argument is not Ellipsis]
    return arguments[-1] if arguments else Any


def _members(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, Mapping) else value)


def _is_of(value: Any, kind: Any) -> bool:
    if _is_container(kind):
        shape: Any = Mapping if _is_mapping(kind) else (list, tuple)
        return isinstance(value, shape) and all(_is_of(member, _member(kind)) for member in _members(value))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf
    return kind is Any or isinstance(value, kind)


def _within(value: Any, rules: Any) -> bool:
    if isinstance(value, (Mapping, list, tuple)):
        return all(_within(member, rules) for member in _members(value))
    if rules.get("choices") is not None and value not in rules["choices"]:
        return False
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return True
    checks = {"gt": lambda bound: value > bound, "ge": lambda bound: value >= bound}
    checks |= {"lt": lambda bound: value < bound, "le": lambda bound: value <= bound}
    return all(check(rules[name]) for name, check in checks.items() if rules.get(name) is not None)
