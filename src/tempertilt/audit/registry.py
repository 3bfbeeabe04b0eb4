"""The registry of attacks: one file each in `tempertilt.audit.attacks`, one decorator."""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tempertilt.audit.attempts import Attempt, Material, Subject
from tempertilt.errors import ConfigError

Make = Callable[[Subject, Material, random.Random], Iterable[Attempt]]
WHO = ("a curious user", "a journalist", "an adversary")


class Attack(NamedTuple):
    """One kind of attack.

    Attributes:
        name: in reports and files.
        who: would do it.
        source: https address of where it is described.
        description: first line of the function's docstring.
        limit: whether it shows what is known to remain, and so counts for no verdict.
        make: the attempts on one subject.
    """

    name: str
    who: str
    source: str
    description: str
    limit: bool
    make: Make


_ATTACKS: dict[str, Attack] = {}


def attack(name: str, *, who: str, source: str, limit: bool = False) -> Callable[[Make], Make]:
    """Decorator of a function that makes the attempts on one subject; it registers an `Attack`.

    Raises:
        ConfigError: the name is taken, the source no https address, `who` none of `WHO`, or the docstring is missing.
    """
    if name in _ATTACKS:
        raise ConfigError(f"an attack {name!r} is registered already; choose another name")
    if not source.startswith("https://"):
        raise ConfigError(f"attack {name!r} has the source {source!r}; must be an https:// address")
    if who not in WHO:
        raise ConfigError(f"attack {name!r} simulates {who!r}; must be one of {', '.join(WHO)}")

    def add(make: Make) -> Make:
        text = (make.__doc__ or "").strip().splitlines()
        if not text:
            raise ConfigError(f"attack {name!r} has no docstring, whose first line is its description")
        _ATTACKS[name] = Attack(name, who, source, text[0].rstrip("."), limit, make)
        return make

    return add


def attacks() -> dict[str, Attack]:
    """All attacks by name, in alphabetical order."""
    package = importlib.import_module("tempertilt.audit.attacks")
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"tempertilt.audit.attacks.{module}")
    return dict(sorted(_ATTACKS.items()))
