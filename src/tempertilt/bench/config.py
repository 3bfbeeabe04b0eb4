"""What a benchmark compares, read from YAML and checked before anything runs."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from tempertilt.data.examples import ExampleConfig
from tempertilt.errors import ConfigError
from tempertilt.methods.registry import find_method, load_plugin
from tempertilt.methods.task import Budget, Method
from tempertilt.models.base import DTYPES
from tempertilt.models.smollm2 import ALIAS, smollm2_dir
from tempertilt.storage import file_sha256
from tempertilt.suites.logs import SPLITS

GENERATED = ("forget", "retain", "real_authors", "world_facts")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured of a model: so many questions of each split, evenly spaced, and greedy answers where asked for."""

    questions: Mapping[str, int] = field(
        default_factory=dict,
        metadata={"help": "questions of a split by its name, at most; a split that is not named: all; 0: none"},
    )
    validation_questions: Mapping[str, int] = field(
        default_factory=dict,
        metadata={"help": "the same for the runs that choose a setting; a split that is not named: as in questions"},
    )
    generate: Sequence[str] = field(default=GENERATED, metadata={"help": "splits with greedy answers (the costly part)"})
    max_new_tokens: int = field(default=200, metadata={"help": "length of a greedy answer, tokens"})
    generation_batch: int = field(default=32, metadata={"help": "prompts generated from at a time"})
    batch_tokens: int = field(default=0, metadata={"help": "positions in a scoring pass; 0 = as t3 eval"})
    overhead_prompts: int = field(
        default=4, metadata={"help": "prompts on which decoding is timed with and without a method; 0 = none"}
    )
    overhead_tokens: int = field(default=24, metadata={"help": "tokens that are decoded for it"})

    def __post_init__(self) -> None:
        for name in (*self.questions, *self.validation_questions, *self.generate):
            if name not in SPLITS:
                raise ConfigError(f"evaluation names the split {name!r}; valid are {', '.join(SPLITS)}")
        if unknown := sorted(set(self.generate) - set(GENERATED)):
            raise ConfigError(f"generate names {', '.join(unknown)}; valid are {', '.join(GENERATED)}")
        numbers = {f"{of}: {name}": n for of in ("questions", "validation_questions") for name, n in getattr(self, of).items()}
        numbers["overhead_prompts"] = self.overhead_prompts
        for name, value in numbers.items():
            if not isinstance(value, int) or value < 0:
                raise ConfigError(f"{name} is {value!r}; valid is a whole number >= 0")
        for name in ("max_new_tokens", "generation_batch", "overhead_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; valid is a whole number >= 1")
        for name in ("questions", "validation_questions"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        object.__setattr__(self, "generate", tuple(self.generate))

    def generated(self, part: str) -> tuple[str, ...]:
        """The splits with greedy answers in a part. Runs that choose generate only if their score, a model utility, needs it."""
        if part == "report":
            return tuple(self.generate)
        needed = GENERATED[1:]
        return needed if set(needed) <= set(self.generate) else ()

    def limits(self, part: str) -> dict[str, int]:
        """The most questions of each split in a part; none for a split that is not named."""
        return {**self.questions, **(self.validation_questions if part == "validation" else {})}


@dataclass(frozen=True)
class Setting:
    """One setting of a method: its label in tables and its options."""

    method: str
    options: Mapping[str, Any]

    def build(self) -> Method:
        """The method."""
        return find_method(self.method).build(self.options)


@dataclass(frozen=True)
class Contender:
    """A row of the table: a name, the settings to choose from, and seeds of its own where it has some."""

    name: str
    settings: tuple[Setting, ...]
    labels: tuple[str, ...]
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class BenchConfig:
    """A benchmark."""

    model: str = field(metadata={"help": "base model: hub id, local directory, or smollm2"})
    data_dir: str = field(metadata={"help": "forget.jsonl, retain.jsonl, and the questions of t3 eval --suite tofu"})
    contenders: tuple[Contender, ...] = field(
        metadata={"help": "methods by name, each with options, a grid, or a list of settings"}
    )
    peft_adapter: str | None = field(default=None, metadata={"help": "PEFT adapter that makes the base model the target"})
    reference_model: str | None = field(default=None, metadata={"help": "model that never saw the forget set (default: model)"})
    reference_peft_adapter: str | None = field(default=None, metadata={"help": "PEFT adapter that makes it the reference"})
    split: str = field(default="forget10", metadata={"help": "forget01, forget05 or forget10 of a whole copy of TOFU"})
    seeds: tuple[int, ...] = field(default=(0, 1, 2), metadata={"help": "seeds of the reported runs"})
    selection_seeds: tuple[int, ...] = field(default=(100,), metadata={"help": "seeds of the runs that choose a setting"})
    validation_fraction: float = field(default=0.3, metadata={"help": "share of the documents whose questions choose a setting"})
    split_seed: int = field(default=0, metadata={"help": "seed of that split"})
    budget: Budget = field(default_factory=Budget, metadata={"help": "train_seconds and train_steps of every method"})
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig, metadata={"help": "what is measured"})
    examples: ExampleConfig = field(default_factory=ExampleConfig, metadata={"help": "how records become tokens"})
    plugins: tuple[str, ...] = field(default=(), metadata={"help": "Python files that register methods"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda ..."})
    dtype: str = field(default="auto", metadata={"help": "auto, float32, float16, bfloat16"})
    threads: int = field(default=0, metadata={"help": "threads of a trial; 0 = torch's own choice"})
    trial_seconds: float | None = field(
        default=None, metadata={"help": "a trial that takes longer is ended and counts as failed"}
    )

    def __post_init__(self) -> None:
        if not self.contenders:
            raise ConfigError("methods is empty; name at least one of  t3 list methods")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction is {self.validation_fraction}; valid is a number in (0, 1)")
        if not self.seeds or not self.selection_seeds:
            raise ConfigError("seeds and selection_seeds must not be empty")
        if both := sorted(set(self.seeds) & set(self.selection_seeds)):
            raise ConfigError(f"seeds and selection_seeds share {both}; a setting is not reported on the seeds that chose it")
        if self.dtype not in ("auto", *DTYPES):
            raise ConfigError(f"dtype is {self.dtype!r}; valid are auto, {', '.join(DTYPES)}")
        if self.threads < 0:
            raise ConfigError(f"threads is {self.threads}; valid is a whole number >= 0")

    @property
    def has_reference(self) -> bool:
        """Whether there is a model that never saw the forget set."""
        return self.reference_model is not None or self.reference_peft_adapter is not None


def read_config(path: str | Path, only: Sequence[str] = ()) -> BenchConfig:
    """Read a benchmark from a YAML file; `${NAME}` stands for the environment variable NAME.

    Args:
        only: rows to keep, all if empty. Reference points are always kept.

    Raises:
        ConfigError: the file, a name or a value is not valid; it says which is.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(_expand(path.read_text(encoding="utf-8"), path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {str(path)!r} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {str(path)!r} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {str(path)!r} holds {type(content).__name__}; valid are lines of  option: value")
    try:
        return _parse(dict(content), only)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _expand(text: str, path: Path) -> str:
    """`text` with `${NAME}` replaced."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise ConfigError(f"{path}: ${{{match[1]}}} is not set; run  {match[1]}=... t3 bench --config {path}")
        return found

    return re.sub(r"\$\{(\w+)\}", value, text)


def _parse(content: dict[str, Any], only: Sequence[str]) -> BenchConfig:
    for plugin in content.get("plugins", ()):
        load_plugin(plugin)
    common = _mapping(content.pop("common", {}), "common")
    rows = _mapping(content.pop("methods", {}), "methods")
    if unknown := [name for name in only if name not in rows]:
        raise ConfigError(f"--only {unknown[0]} is no row of methods; valid are {', '.join(rows)}")
    contenders = tuple(
        _contender(name, _mapping(row or {}, name), common)
        for name, row in rows.items()
        if not only or name in only or name in ("target", "reference")
    )
    known = {option.name for option in fields(BenchConfig)} - {"contenders"}
    if unknown := sorted(set(content) - known):
        raise ConfigError(f"unknown option {unknown[0]!r}; valid are {', '.join(sorted({*known, 'methods', 'common'}))}")
    for name, kind in (("budget", Budget), ("evaluation", EvaluationConfig), ("examples", ExampleConfig)):
        if name in content:
            content[name] = _built(kind, _mapping(content[name], name), name)
    for name in ("seeds", "selection_seeds", "plugins"):
        if name in content:
            content[name] = _items(content[name], name)
    for name in ("model", "data_dir"):
        if not content.get(name):
            raise ConfigError(f"{name} is not named")
    return BenchConfig(contenders=contenders, **content)


def _contender(name: str, row: dict[str, Any], common: Mapping[str, Any]) -> Contender:
    """A row: `method` (default: the row's name), `seeds`, and `options`, `grid` (a product) or `settings` (a list)."""
    method = str(row.pop("method", name))
    entry = find_method(method)
    seeds = row.pop("seeds", None)
    options, grid, listed = row.pop("options", {}), row.pop("grid", {}), row.pop("settings", None)
    if row:
        raise ConfigError(f"{name}: unknown {next(iter(row))!r}; valid are method, seeds, options, grid, settings")
    shared = {key: value for key, value in common.items() if key in {option.name for option in fields(entry.config)}}
    fixed = shared | _mapping(options, f"{name}: options")
    grid = _mapping(grid, f"{name}: grid")
    if grid and listed is not None:
        raise ConfigError(f"{name}: grid and settings are both given; valid is one of them")
    columns = [[(key, value) for value in _items(values, f"{name}: {key}")] for key, values in grid.items()]
    choices = [_mapping(item, name) for item in _items(listed or [], name)] or [dict(of) for of in itertools.product(*columns)]
    choices = [_numbers(choice, entry.config) for choice in choices]
    settings = []
    for choice in choices:
        setting = Setting(method, _numbers(fixed, entry.config) | choice)
        try:
            setting.build()
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
        settings.append(setting)
    labels = tuple(_label(choice) for choice in choices)
    return Contender(name, tuple(settings), labels, None if seeds is None else _items(seeds, f"{name}: seeds"))


def _label(choice: Mapping[str, Any]) -> str:
    """A choice as text: options of options by their own names, or "defaults" if there are none."""
    out = []
    for key, value in choice.items():
        if isinstance(value, Mapping):
            out.append(_label(value) or "defaults")
        else:
            out.append(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(out)


def _numbers(options: Mapping[str, Any], config: type) -> dict[str, Any]:
    """The options with numbers that YAML reads as text (1e-3) as numbers, where the configuration has a number."""
    kinds = {option.name: type(option.default) for option in fields(config)}
    return {key: _number(value) if kinds.get(key) in (int, float) else _deep(value) for key, value in options.items()}


def _deep(value: Any) -> Any:
    return {key: _number(of) for key, of in value.items()} if isinstance(value, dict) else value


def _number(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is {value!r}; valid are lines of  option: value")
    return dict(value)


def _items(value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} is {value!r}; valid is a list")
    return tuple(value)


def _built(kind: type, options: dict[str, Any], name: str) -> Any:
    known = [option.name for option in fields(kind)]
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"{name} has no option {unknown[0]!r}; valid are {', '.join(known)}")
    return kind(**options)


def source_digest(name: str | None) -> str | None:
    """What names the content of a model or adapter: a hash of a local directory's files, or the hub id itself."""
    if name is None:
        return None
    path = smollm2_dir() if name == ALIAS else Path(name).expanduser()
    if not path.is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            digest.update(f"{file.name} {file_sha256(file)}".encode())
    return digest.hexdigest()[:32]


SOURCES = ("model", "peft_adapter", "reference_model", "reference_peft_adapter", "data_dir")


def as_dict(config: BenchConfig, path: str | Path) -> dict[str, Any]:
    """The configuration read from `path`, JSON-ready. Models and data are named as they are there, `${NAME}` left in place."""
    written = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return asdict(config) | {name: written[name] for name in SOURCES if name in written}
