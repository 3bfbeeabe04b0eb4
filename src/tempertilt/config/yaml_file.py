"""Reading options from YAML files."""

from __future__ import annotations

import re
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


def read_yaml(path: Path, label: str = "") -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        label: what the file is to the user, before its name in errors, such as "--config".

    Raises:
        ConfigError: the file can't be read, is not YAML, holds a key twice, or no mapping; it names the line.
    """
    name = f"{label} {str(path)!r}".strip()
    try:
        text = path.read_text(encoding="utf-8-sig")
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
    seen: set[str] = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: {key.value!r} is given twice; must be given once")
            seen.add(key.value)
        _refuse_repeated(value)
