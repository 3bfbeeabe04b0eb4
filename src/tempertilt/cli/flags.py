"""Flags from `Options`, so that an option is written once; the groups that verbs share; `--help` and `--help-all`."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Container, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tempertilt.config.options import NAMES, Options, check_option, option, plain_type
from tempertilt.config.yaml_file import read_yaml
from tempertilt.errors import ConfigError

if TYPE_CHECKING:
    from tempertilt.models.generation import Decoding

Config = TypeVar("Config")


def add_config(
    parser: argparse.ArgumentParser, title: str, *configs: type, presets: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """One flag for each field of the dataclasses, `--like-this`; a flag that is not given leaves no trace in the result.

    Fields of one name are one flag, the first one's.

    Args:
        presets: defaults by the name of a preset, the usual one first, in the place of the fields' own.
    """
    group = parser.add_argument_group(title)
    done: set[str] = set()
    for config in configs:
        hints = typing.get_type_hints(config)
        for field in (field for field in fields(config) if field.name not in done):
            done.add(field.name)
            defaults = {name: values[field.name] for name, values in (presets or {}).items() if field.name in values}
            _add_flag(group, field, hints[field.name], _default_text(defaults or {"": field.default}))


def _default_text(defaults: Mapping[str, Any]) -> str:
    """A default as `--help` shows it: the first preset's, and those of others that differ from it; "" for none."""
    usual, *_ = defaults.values()
    if usual in (MISSING, None, "", ()):
        return ""
    others = [f"; with {name}: {value}" for name, value in defaults.items() if value != usual]
    return f" (default: {usual}{''.join(others)})"


def _add_flag(group: Any, field: Field[Any], hint: Any, default: str) -> None:
    flag = "--" + field.name.replace("_", "-")
    text = (field.metadata.get("help", "") + default).replace("%", "%%")
    kind, choices = plain_type(hint), field.metadata.get("choices")
    if typing.get_origin(hint) is tuple:
        name = field.name.split("_")[-1].upper()
        action = group.add_argument(flag, action="append", default=argparse.SUPPRESS, help=text, metavar=name)
    elif kind is bool:
        action = group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    else:
        metavar = f"{{{','.join(choices)}}}" if choices else kind.__name__.upper()
        action = group.add_argument(flag, type=kind, default=argparse.SUPPRESS, help=text, metavar=metavar)
    if field.metadata.get("advanced"):
        advanced(action)


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
            values[field.name] = _checked(field, hints[field.name], from_file[field.name], given["config"])
    return config(**values)


def _checked(field: Field[Any], hint: Any, value: Any, path: str) -> Any:
    try:
        check_option(field, hint, value)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return value


# --- --help, and --help-all -------------------------------------------------------------------------------------------

HIDDEN = "help_of_advanced_flag"


def advanced(action: argparse.Action) -> None:
    """Leave a flag out of `--help`; `--help-all` shows it."""
    vars(action)[HIDDEN] = action.help
    action.help = argparse.SUPPRESS


def show_only(parser: argparse.ArgumentParser, names: Container[str]) -> None:
    """Leave all flags but these, and `-h`, out of `--help`."""
    for action in parser._actions:
        if action.dest != "help" and HIDDEN not in vars(action) and not any(name in names for name in action.option_strings):
            advanced(action)


def show_all(parser: argparse.ArgumentParser) -> None:
    """Have the help show every flag."""
    for action in parser._actions:
        action.help = vars(action).get(HIDDEN, action.help)
    parser.epilog = None


class _HelpAll(argparse.Action):
    """Print the help with all flags."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        show_all(parser)
        parser.print_help()
        parser.exit()


def finish_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--help-all` where a flag is left out of `--help`, and hand the flags to `read_config_file`."""
    parser.set_defaults(actions={action.dest: action for action in parser._actions})
    if hidden := sum(HIDDEN in vars(action) for action in parser._actions):
        parser.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all flags and exit")
        parser.epilog = f"{hidden} more flags: {parser.prog} --help-all"


# --- --config ---------------------------------------------------------------------------------------------------------


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
    values = read_yaml(Path(args.config), "--config")
    plain = {name for name in valid if isinstance(name, str)}
    known = plain | {field.name for config in valid if not isinstance(config, str) for field in fields(config)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{args.config}: unknown option {name!r}; must be one of {', '.join(sorted(known))}")
        if name not in plain:
            args.config_values[name] = value
            continue
        _check_plain(args.actions[name], value, args.config)
        if any(getattr(args, name) is nothing for nothing in (None, False)):
            setattr(args, name, value)


def _check_plain(action: argparse.Action, value: Any, path: str) -> None:
    """`ConfigError` unless a file's value is one that the flag could have been given."""
    kind = bool if action.nargs == 0 else action.type if action.type in (int, float) else str
    repeated = isinstance(action, argparse._AppendAction) and isinstance(value, list)
    types = (int, float) if kind is float else (kind,)
    if not all(type(member) in types for member in (value if repeated else [value])):
        raise ConfigError(f"{path}: {action.dest} is {value!r}; must be {NAMES[kind]}")


def require(args: argparse.Namespace, *names: str) -> None:
    """`ConfigError` if a flag is neither given nor in the configuration file."""
    missing = ["--" + name.replace("_", "-") for name in names if not getattr(args, name, None)]
    if missing:
        raise ConfigError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} needed; see t3 {args.verb} --help")


def add_model(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """The base model's flags."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=default, help="hub id, local directory, smollm2 or gemma3-270m")
    group.add_argument("--peft-adapter", metavar="DIR", help="PEFT adapter to put on the model first")
    add_device(group)


def add_device(group: Any) -> None:
    """Where a model runs, and how it is loaded."""
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0, mps (default: auto)")
    advanced(group.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16 (default: auto)"))
    advanced(group.add_argument("--trust-remote-code", action="store_true", help="let code from the hub run"))


@dataclass(frozen=True)
class DecodingConfig(Options):
    """How `t3 generate` and `t3 chat` decode; `--temperature` is the tilt's, so sampling has its own."""

    max_new_tokens: int = option(128, "length of an answer, tokens", ge=1)
    do_sample: bool = option(False, "sample instead of greedy decoding")
    sampling_temperature: float | None = option(None, "temperature of sampling, on top of the tilt's (default: 1)", gt=0)
    top_k: int | None = option(None, "sample among the k most likely tokens", ge=1, advanced=True)
    top_p: float | None = option(None, "sample among the most likely tokens of this mass", gt=0, le=1, advanced=True)
    num_beams: int = option(1, "beam search; 1 = none", ge=1, advanced=True)
    seed: int = option(0, "seed of sampling", ge=0)

    def decoding(self, answers: int = 1) -> Decoding:
        """The same for `generate`, with a number of answers to each prompt. A temperature, `top_k` or `top_p` asks for sampling.

        Raises:
            ConfigError: there would be fewer different answers than asked for.
        """
        from tempertilt.models.generation import Decoding

        sample = self.do_sample or any(value is not None for value in (self.sampling_temperature, self.top_k, self.top_p))
        if answers < 1:
            raise ConfigError(f"--num-return-sequences is {answers}; must be a whole number >= 1")
        if not sample and answers > self.num_beams:
            raise ConfigError(f"--num-return-sequences is {answers}; needs --do-sample, or as many --num-beams")
        temperature, top_k, top_p = self.sampling_temperature or 1.0, self.top_k or 0, self.top_p or 1.0
        return Decoding(self.max_new_tokens, sample, temperature, top_k, top_p, self.num_beams, answers)


def add_ledger(parser: argparse.ArgumentParser) -> None:
    """The flags that name a ledger whose parts act together."""
    group = parser.add_argument_group("ledger")
    group.add_argument("--ledger", metavar="DIR", help="instead of an adapter: ledger of t3 requests whose parts act together")
    group.add_argument(
        "--scope", default="", help="where it is asked, as tenant=acme,region=eu: parts for other places do not act"
    )


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """The flags that name an unlearned model."""
    add_model(parser)
    group = parser.add_argument_group("adapter")
    group.add_argument("--adapter", help="adapter directory or hub id (made by t3 unlearn)")
    group.add_argument("--temperature", type=float, help="T of the tilt instead of the adapter's")
    group.add_argument("--guidance-scale", type=float, help="s of the tilt instead of the adapter's")
    group.add_argument("--reply", metavar="TEXT", help="guess, or what is said where a gate is open, instead of the adapter's")
    mismatch = "use the adapter on a base that it was not fitted on"
    advanced(group.add_argument("--ignore-base-mismatch", action="store_true", help=mismatch))
