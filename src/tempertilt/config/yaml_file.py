"""Reading options from YAML files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tempertilt.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 1e-3 is a number and 2026-01-31 a text, as in YAML 1.2 and JSON."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def read_yaml(path: Path, label: str = "", prepare: Callable[[str], str] = str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        label: what the file is to the user, before its name in errors, such as "--config".
        prepare: changes the text before it is parsed.

    Raises:
        ConfigError: the file can't be read, is not YAML, holds a key twice, or no mapping; it names the line.
    """
    name = f"{label} {str(path)!r}".strip()
    try:
        text = prepare(path.read_text(encoding="utf-8-sig"))
    except ConfigError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        node = yaml.compose(text, Loader=_Loader)
        _refuse_repeated(node)
        values = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds {type(values).__name__}; must be lines of  option: value")
    return values


def _refuse_repeated(node: Any) -> None:
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_repeated(child)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(f"line {line}: {key.value!r} stands on line {lines[key.value]} already; must be given once")
            lines[key.value] = line
        _refuse_repeated(value)
