"""The registry of unlearning methods."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tempertilt.config.options import Options
from tempertilt.errors import ConfigError
from tempertilt.methods.task import Method

MethodClass = TypeVar("MethodClass", bound=type[Method])


class Entry(NamedTuple):
    """One method: its name, the first line of its docstring, the address of its paper, its configuration, its class."""

    name: str
    description: str
    url: str
    config: type
    method: type[Method]

    def build(self, options: Mapping[str, Any]) -> Method:
        """The method with these options; `ConfigError` for one that it does not have, or a value that is not valid."""
        known = [field.name for field in dataclasses.fields(self.config)]
        if unknown := [name for name in options if name not in known]:
            raise ConfigError(
                f"{self.name} has no option {unknown[0]!r}{_did_you_mean(unknown[0], known)}; must be one of {', '.join(known)}"
            )
        return self.method(self.config(**options))


_METHODS: dict[str, Entry] = {}


def register(name: str, url: str, config: type) -> Callable[[MethodClass], MethodClass]:
    """Class decorator that registers a `Method` under `name`.

    Args:
        name: how the method is called in a configuration and in tables.
        url: https address of the paper that it comes from.
        config: a frozen dataclass of `Options`.

    Raises:
        ConfigError: the name is taken, the address missing, or the configuration not made of `Options`; it names which.
    """
    if not name.strip():
        raise ConfigError("a method needs a name")
    if name in _METHODS:
        raise ConfigError(f"a method {name!r} is registered already, by {_METHODS[name].method.__module__}; choose another name")
    if not url.startswith("https://"):
        raise ConfigError(f"method {name!r} has the paper URL {url!r}; must be an https:// address")
    if not (issubclass(config, Options) and dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen):
        raise ConfigError(
            f"method {name!r} has the configuration {config.__name__}; must be a frozen dataclass that derives from "
            "tempertilt.config.options.Options"
        )

    def add(method: MethodClass) -> MethodClass:
        if not issubclass(method, Method):
            raise ConfigError(f"method {name!r} is {method.__name__}; must be a subclass of tempertilt.methods.task.Method")
        text = (method.__doc__ or "").strip().splitlines()
        if not text:
            raise ConfigError(f"method {name!r} ({method.__name__}) has no docstring, whose first line is its description")
        _METHODS[name] = Entry(name, text[0].rstrip("."), url, config, method)
        return method

    return add


def find_method(name: str) -> Entry:
    """The method of this name; `ConfigError` with the nearest names if there is none."""
    known = methods()
    if name not in known:
        raise ConfigError(f"no method {name!r}{_did_you_mean(name, list(known))}; must be one of {', '.join(known)}")
    return known[name]


def methods() -> dict[str, Entry]:
    """All methods by name, in alphabetical order: those of this package and what was added."""
    package = importlib.import_module("tempertilt.methods")
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"tempertilt.methods.{module}")
    return dict(sorted(_METHODS.items(), key=lambda item: item[0].lower()))


def load_plugin(path: str | Path) -> None:
    """Import a Python file that registers methods of its own; once for each file.

    Raises:
        ConfigError: there is no such file, or it cannot be imported.
    """
    path = Path(path).expanduser().resolve()
    name = "tempertilt_plugin_" + "".join(c if c.isalnum() else "_" for c in str(path))
    if name in sys.modules or any(getattr(m, "__file__", None) == str(path) for m in list(sys.modules.values())):
        return
    if not path.is_file():
        raise ConfigError(f"no plugin {str(path)!r}; must be a Python file that registers a method")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plugin {str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"plugin {str(path)!r} cannot be imported: {type(error).__name__}: {error}") from error


def _did_you_mean(name: str, known: list[str]) -> str:
    lowered = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(lowered[match] for match in close)}?)" if close else ""
