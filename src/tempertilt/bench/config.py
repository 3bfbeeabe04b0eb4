"""What a benchmark compares, read from YAML and checked before anything runs."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tempertilt.config.options import Options, option
from tempertilt.config.yaml_file import read_yaml
from tempertilt.data.examples import ExampleConfig
from tempertilt.errors import ConfigError
from tempertilt.methods.registry import find_method, load_plugin
from tempertilt.methods.task import Budget, Method
from tempertilt.models.base import DTYPES
from tempertilt.models.packaged import PACKAGES, packaged_dir
from tempertilt.storage import file_sha256
from tempertilt.suites.logs import SPLITS
from tempertilt.suites.tofu import FORGET_SPLITS

GENERATED = ("forget", "retain", "real_authors", "world_facts")
EXTRAS = ("divergence", "draws")
"""Options of what is measured of the reported runs alone, and only where it is asked for."""


@dataclass(frozen=True)
class EvaluationConfig(Options):
    """What is measured of a model: up to N questions of each split, evenly spaced, and greedy answers where asked for."""

    questions: Mapping[str, int] = option(
        help="questions of a split by its name, at most; a split that is not named: all; 0: none", default_factory=dict, ge=0
    )
    validation_questions: Mapping[str, int] = option(
        help="the same for the runs that choose a setting; a split that is not named: as in questions",
        default_factory=dict,
        ge=0,
    )
    generate: Sequence[str] = option(GENERATED, "splits with greedy answers (the costly part)", choices=GENERATED)
    max_new_tokens: int = option(200, "length of a greedy answer, tokens", ge=1)
    generation_batch: int = option(32, "prompts generated from at a time", ge=1)
    batch_tokens: int = option(0, "positions in a scoring pass; 0 = as t3 eval", ge=0)
    divergence: bool = option(False, "forget answers against those of the reference, which is loaded beside each reported model")
    draws: int = option(0, "answers sampled for each forget question of the reported runs", ge=0)
    overhead_prompts: int = option(4, "prompts on which decoding is timed with and without a method; 0 = none", ge=0)
    overhead_tokens: int = option(24, "tokens that are decoded for it", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("questions", "validation_questions"):
            if unknown := sorted(set(getattr(self, name)) - set(SPLITS)):
                raise ConfigError(f"{name} names the split {unknown[0]!r}; must be one of {', '.join(SPLITS)}")
            object.__setattr__(self, name, dict(getattr(self, name)))
        object.__setattr__(self, "generate", tuple(self.generate))

    def extras(self, part: str) -> dict[str, Any]:
        """What else is measured in a part, by the option that asks for it."""
        wanted = {name: getattr(self, name) for name in EXTRAS}
        return {name: value for name, value in wanted.items() if value and part == "report"}

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
class BenchConfig(Options):
    """A benchmark."""

    model: str = option(help="base model: hub id, local directory, smollm2 or gemma3-270m")
    data_dir: str = option(help="forget.jsonl, retain.jsonl, and the questions of t3 eval --suite tofu")
    contenders: tuple[Contender, ...] = option(help="methods by name, each with options, a grid, or a list of settings")
    peft_adapter: str | None = option(None, "PEFT adapter that makes the base model the target")
    reference_model: str | None = option(None, "model that never saw the forget set (default: model)")
    reference_peft_adapter: str | None = option(None, "PEFT adapter that makes it the reference")
    split: str = option("forget10", "forget01, forget05 or forget10 of a whole copy of TOFU", choices=FORGET_SPLITS)
    seeds: tuple[int, ...] = option((0, 1, 2), "seeds of the reported runs", ge=0)
    selection_seeds: tuple[int, ...] = option((100,), "seeds of the runs that choose a setting", ge=0)
    validation_fraction: float = option(0.3, "share of the documents whose questions choose a setting", gt=0, lt=1)
    split_seed: int = option(0, "seed of that split", ge=0)
    budget: Budget = option(help="train_seconds and train_steps of every method", default_factory=Budget)
    evaluation: EvaluationConfig = option(help="what is measured", default_factory=EvaluationConfig)
    examples: ExampleConfig = option(help="how records become tokens", default_factory=ExampleConfig)
    plugins: tuple[str, ...] = option((), "Python files that register methods")
    device: str = option("auto", "auto, cpu, cuda ...")
    dtype: str = option("auto", "auto, float32, float16, bfloat16", choices=("auto", *DTYPES))
    threads: int = option(0, "threads of a trial; 0 = torch's own choice", ge=0)
    trial_seconds: float | None = option(None, "a trial that takes longer is ended and counts as failed", gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("contenders", "seeds", "selection_seeds"):
            if not getattr(self, name):
                raise ConfigError(f"{'methods' if name == 'contenders' else name} is empty; must name at least one")
        if self.evaluation.divergence and not self.has_reference:
            raise ConfigError("evaluation: divergence is true; must be false without a reference_model or reference_peft_adapter")
        if both := sorted(set(self.seeds) & set(self.selection_seeds)):
            raise ConfigError(
                f"seeds and selection_seeds share {both}; a setting must not be reported on the seeds that chose it"
            )

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
    content = read_yaml(path, "--config", prepare=lambda text: _expand(text, path))
    try:
        return _parse(content, only)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _expand(text: str, path: Path) -> str:
    """`text` with `${NAME}` replaced."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"{path}: ${{{match[1]}}} is not set; run  {match[1]}=... t3 bench --config {path}")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)


def _parse(content: dict[str, Any], only: Sequence[str]) -> BenchConfig:
    for name in ("seeds", "selection_seeds", "plugins"):
        if name in content:
            content[name] = _items(content[name], name)
    for plugin in content.get("plugins", ()):
        load_plugin(plugin)
    common = _mapping(content.pop("common", {}), "common")
    rows = _mapping(content.pop("methods", {}), "methods")
    if unknown := [name for name in only if name not in rows]:
        raise ConfigError(f"--only {unknown[0]} is no row of methods; must be one of {', '.join(rows)}")
    contenders = tuple(
        _contender(name, _mapping(row or {}, name), common)
        for name, row in rows.items()
        if not only or name in only or name in ("target", "reference")
    )
    known = {option.name for option in fields(BenchConfig)} - {"contenders"}
    if unknown := sorted(set(content) - known):
        raise ConfigError(f"unknown option {unknown[0]!r}; must be one of {', '.join(sorted({*known, 'methods', 'common'}))}")
    for name, kind in (("budget", Budget), ("evaluation", EvaluationConfig), ("examples", ExampleConfig)):
        if name in content:
            content[name] = _built(kind, _mapping(content[name], name), name)
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
        raise ConfigError(f"{name}: unknown {next(iter(row))!r}; must be one of method, seeds, options, grid, settings")
    shared = {key: value for key, value in common.items() if key in {option.name for option in fields(entry.config)}}
    fixed = shared | _mapping(options, f"{name}: options")
    grid = _mapping(grid, f"{name}: grid")
    if grid and listed is not None:
        raise ConfigError(f"{name}: grid and settings are both given; must be one of them")
    columns = [[(key, value) for value in _items(values, f"{name}: {key}")] for key, values in grid.items()]
    choices = [_mapping(item, name) for item in _items(listed or [], name)] or list(map(dict, itertools.product(*columns)))
    settings = []
    for choice in choices:
        setting = Setting(method, fixed | choice)
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


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is {value!r}; must be lines of  option: value")
    return dict(value)


def _items(value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} is {value!r}; must be a list")
    return tuple(value)


def _built(kind: type, options: dict[str, Any], name: str) -> Any:
    known = [option.name for option in fields(kind)]
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"{name} has no option {unknown[0]!r}; must be one of {', '.join(known)}")
    return kind(**options)


def source_digest(name: str | None) -> str | None:
    """What names the content of a model or adapter: a hash of a local directory's files, or the hub id itself."""
    if name is None:
        return None
    path = packaged_dir(name) if name in PACKAGES else Path(name).expanduser()
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
    written = read_yaml(Path(path))
    return asdict(config) | {name: written[name] for name in SOURCES if name in written}
