"""Flags from configuration dataclasses, so that an option is written once; and the groups that verbs share."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tempertilt.errors import ConfigError

Config = TypeVar("Config")


def add_config(parser: argparse.ArgumentParser, title: str, *configs: type) -> None:
    """One flag for each field of the dataclasses, `--like-this`; a flag that is not given leaves no trace in the result."""
    group = parser.add_argument_group(title)
    for config in configs:
        hints = typing.get_type_hints(config)
        for field in fields(config):
            _add_flag(group, field, hints[field.name])


def _add_flag(group: Any, field: Field[Any], hint: Any) -> None:
    flag = "--" + field.name.replace("_", "-")
    default = "" if field.default in (MISSING, None, "", ()) else f" (default: {field.default})"
    text = (field.metadata.get("help", "") + default).replace("%", "%%")
    kind = _plain_type(hint)
    if typing.get_origin(hint) is tuple:
        group.add_argument(flag, action="append", default=argparse.SUPPRESS, help=text, metavar=field.name.split("_")[-1].upper())
    elif kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    else:
        group.add_argument(flag, type=kind, default=argparse.SUPPRESS, help=text, metavar=kind.__name__.upper())


def _plain_type(hint: Any) -> Any:
    """int, float, str or bool of a hint that may be optional or a literal."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return str if typing.get_origin(hint) is typing.Literal else hint


def build(config: type[Config], args: argparse.Namespace, below: Config | None = None) -> Config:
    """A configuration from the flags that were given; below them the `--config` file, then `below`, then its own defaults."""
    given = vars(args)
    from_file = given.get("config_values", {})
    hints = typing.get_type_hints(config)
    values = {}
    for field in fields(config):  # type: ignore[arg-type]
        if below is not None:
            values[field.name] = getattr(below, field.name)
        if field.name in given:
            value = given[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
        elif field.name in from_file:
            values[field.name] = _coerce(from_file[field.name], _plain_type(hints[field.name]), field.name, given["config"])
    return config(**values)


def _coerce(value: Any, kind: Any, name: str, path: str) -> Any:
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except ValueError:
            pass
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{path}: {name} is {value!r}; valid is a value of type {kind.__name__}")


def add_config_file(parser: argparse.ArgumentParser) -> None:
    """`--config FILE.yaml`: options by their names, with underscores; flags override them."""
    parser.add_argument("--config", metavar="FILE", help="YAML file with options (names with underscores); flags override it")


def read_config_file(args: argparse.Namespace, valid: Sequence[type | str]) -> None:
    """Put the values of `--config` into `args`: plain flags that were not given, and `config_values` for `build`.

    `valid` lists the dataclasses and the names of plain flags that the file may set. Raises `ConfigError`.
    """
    args.config_values = {}
    if not args.config:
        return
    values = _read_yaml(Path(args.config))
    plain = {name for name in valid if isinstance(name, str)}
    known = plain | {field.name for config in valid if not isinstance(config, str) for field in fields(config)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{args.config}: unknown option {name!r}; valid are {', '.join(sorted(known))}")
        if name not in plain:
            args.config_values[name] = value
        elif getattr(args, name, None) in (None, False):
            setattr(args, name, value)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {str(path)!r} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {str(path)!r} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {str(path)!r} holds {type(values).__name__}; valid are lines of  option: value")
    return values


def require(args: argparse.Namespace, *names: str) -> None:
    """`ConfigError` if a flag is neither given nor in the configuration file."""
    missing = ["--" + name.replace("_", "-") for name in names if not getattr(args, name, None)]
    if missing:
        raise ConfigError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} needed; see t3 {args.verb} --help")


def add_model(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """The base model's flags."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=default, help="hub id, local directory, or smollm2")
    group.add_argument("--peft-adapter", metavar="DIR", help="PEFT adapter to put on the model first")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0, mps (default: auto)")
    group.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16 (default: auto)")
    group.add_argument("--trust-remote-code", action="store_true", help="let code from the hub run")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The decoding flags of `t3 generate` and `t3 chat`; `--temperature` is the tilt's, so sampling has its own."""
    group = parser.add_argument_group("decoding")
    group.add_argument("--max-new-tokens", type=int, default=128, help="length of an answer, tokens (default: 128)")
    group.add_argument("--do-sample", action="store_true", help="sample instead of greedy decoding")
    group.add_argument("--sampling-temperature", type=float, help="temperature of sampling, on top of the tilt's (default: 1)")
    group.add_argument("--top-k", type=int, help="sample among the k most likely tokens")
    group.add_argument("--top-p", type=float, help="sample among the most likely tokens of this mass")
    group.add_argument("--num-beams", type=int, default=1, help="beam search (default: 1 = none)")
    group.add_argument("--seed", type=int, default=0, help="seed of sampling (default: 0)")


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `generate`; `ConfigError` for values out of range."""
    for name, low in (("max_new_tokens", 1), ("num_beams", 1), ("top_k", 1)):
        value = getattr(args, name)
        if value is not None and value < low:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; valid is a whole number >= {low}")
    if args.top_p is not None and not 0 < args.top_p <= 1:
        raise ConfigError(f"--top-p is {args.top_p}; valid is a number in (0, 1]")
    if args.sampling_temperature is not None and not args.sampling_temperature > 0:
        raise ConfigError(f"--sampling-temperature is {args.sampling_temperature}; valid is a number > 0")
    sample = args.do_sample or any(value is not None for value in (args.sampling_temperature, args.top_k, args.top_p))
    options = {"max_new_tokens": args.max_new_tokens, "num_beams": args.num_beams, "do_sample": sample}
    options |= {"temperature": args.sampling_temperature or 1.0, "top_k": args.top_k or 0, "top_p": args.top_p or 1.0}
    return options if sample else options | {"temperature": None, "top_k": None, "top_p": None}


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """The flags that name an unlearned model."""
    add_model(parser)
    group = parser.add_argument_group("adapter")
    group.add_argument("--adapter", help="adapter directory or hub id (made by t3 unlearn)")
    group.add_argument("--temperature", type=float, help="T of the tilt instead of the adapter's")
    group.add_argument("--guidance-scale", type=float, help="s of the tilt instead of the adapter's")
    group.add_argument("--ignore-base-mismatch", action="store_true", help="use the adapter on a base that it was not fitted on")
