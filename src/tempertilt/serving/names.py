"""The names that requests call models by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tempertilt.errors import ConfigError

BASE = "base"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def parse_adapters(given: Sequence[str], flag: str = "--adapter") -> dict[str, str]:
    """Adapters by name from `DIR` or `name=DIR`, as `flag` gives them; a plain one is named as its directory.

    Raises:
        ConfigError: a name is not valid, is taken, or none is given.
    """
    adapters: dict[str, str] = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not equals or Path(text).expanduser().is_dir():
            place = text
            name = Path(text).expanduser().resolve().name if Path(text).expanduser().is_dir() else text.rstrip("/").split("/")[-1]
        if not NAME.fullmatch(name) or not place:
            raise ConfigError(f"{flag} {text!r}: the name is {name!r}; must be letters, digits, '.', '_', '-':  name=DIR")
        if name == BASE:
            raise ConfigError(f"{flag} {text!r}: {BASE!r} is the base model's name; give another:  name=DIR")
        if name in adapters:
            raise ConfigError(f"{flag} {text!r}: the name {name!r} is given twice; give others:  name=DIR")
        adapters[name] = place
    if not adapters:
        raise ConfigError("--adapter or --ledger is needed: t3 serve serves unlearned models; see t3 serve --help")
    return adapters
