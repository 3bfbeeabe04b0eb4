"""T3 (Temper-Then-Tilt; Block et al., arXiv 2602.10217): as this package does it by default, and in the paper's setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from tempertilt.config.keys import FIT
from tempertilt.config.options import Options, option
from tempertilt.data.records import RecordSets
from tempertilt.errors import ConfigError
from tempertilt.fitting.before_after import NO_REPORT
from tempertilt.fitting.pipeline import METHODS, UnlearnConfig, unlearn
from tempertilt.methods.registry import register
from tempertilt.methods.task import Method, Task, Unlearned

URL = "https://arxiv.org/abs/2602.10217"


@dataclass(frozen=True)
class T3Config(Options):
    """Options of T3: those of `t3 unlearn`, by name; what is not named has the method's default."""

    options: Mapping[str, Any] = option(help="options of t3 unlearn, by name", default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        unlearn_config("t3", self.options)


@dataclass(frozen=True)
class T3PaperConfig(T3Config):
    """Options of T3 in the paper's setting: options that are named take the place of the paper's."""


def unlearn_config(method: str, options: Mapping[str, Any]) -> UnlearnConfig:
    """A method's configuration in `pipeline.METHODS` with some options changed, each in the part that has it.

    Raises:
        ConfigError: no part has an option of that name, or its value is not valid.
    """
    config = METHODS[method]
    parts = {part.name: getattr(config, part.name) for part in fields(config) if is_dataclass(getattr(config, part.name))}
    owners = {option.name: name for name, part in parts.items() for option in fields(part)}
    if unknown := sorted(set(options) - set(owners)):
        raise ConfigError(f"t3 has no option {', '.join(unknown)}; must be one of {', '.join(sorted(owners))}")
    changed = {
        name: replace(part, **{option: value for option, value in options.items() if owners[option] == name})
        for name, part in parts.items()
    }
    return replace(config, **changed)


@register("t3", URL, T3Config)
class T3(Method):
    """Temper, then tilt, with this package's defaults."""

    method = "t3"
    steps = FIT

    def unlearn(self, task: Task) -> Unlearned:
        """Features, head, adapter."""
        config = unlearn_config(self.method, {"seed": task.seed, **self.options()})
        config = replace(config, examples=task.examples, report=NO_REPORT)
        directory, sets = task.work_dir / "adapter", RecordSets(task.forget, task.retain, [], [])
        cache = task.work_dir / "cache"  # no features of an earlier run are found, so their time is measured
        result = unlearn(task.base, sets, directory, config, cache=cache, progress=task.progress)
        assert result.fit is not None and result.extraction is not None
        body = task.base.model.num_parameters()
        return Unlearned(
            model=result.model,
            seconds={
                "reference": sum(result.seconds.get(step, 0.0) for step in ("background", "features", "estimate")),
                "training": result.seconds.get("gates", 0.0) + result.seconds["fit"],
            },
            trained_parameters=result.fit.num_parameters,
            artefact_bytes=sum(path.stat().st_size for path in directory.glob("adapter_*")),
            train_flops=2.0 * body * result.extraction.tokens,
            details={"recipe": config.recipe(), "fit_seconds": result.fit.seconds},
        )

    def recipe(self) -> dict[str, Any]:
        """Every option of `t3 unlearn` that decides the adapter, whatever the package's defaults are; the bench has the seed."""
        return {name: value for name, value in unlearn_config(self.method, self.options()).recipe().items() if name != "seed"}

    def options(self) -> dict[str, Any]:
        """Options of `t3 unlearn`."""
        return dict(self.config.options)


@register("t3-paper", URL, T3PaperConfig)
class T3Paper(T3):
    """Temper, then tilt, in the paper's setting."""

    method = "t3-paper"
