"""What a suite is: its data, what is measured on each split, and its metrics. A suite is one file and its name in `NAMES`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tempertilt.config.options import Options, option
from tempertilt.data.lines import half_pair
from tempertilt.errors import ConfigError, DataError
from tempertilt.metrics.result import MetricResult
from tempertilt.metrics.samples import Results, Samples
from tempertilt.suites.items import Item, ItemKind, Plan

NAMES = ("tofu", "lume", "people", "muse", "mmlu", "chat")
"""The suites, each the module of its name in this package, where it is called `SUITE`."""

Data = dict[str, list[Item]]
"""The questions of each split."""


@dataclass(frozen=True)
class SuiteConfig(Options):
    """Which part of a suite's data."""

    limit: int | None = option(None, "only N questions of each split: the first; of mmlu and chat evenly spread ones", ge=1)


@dataclass(frozen=True)
class PromptConfig(SuiteConfig):
    """The same, for suites whose prompts are plain text where their authors measure."""

    prompt_format: str = option(
        "completion", "lume, mmlu: plain text, as their authors have it, or chats", choices=("completion", "chat")
    )

    @property
    def kind(self) -> ItemKind:
        """Of the suite's items."""
        return "question" if self.prompt_format == "chat" else "completion"


class Compared(NamedTuple):
    """What metrics are computed from: a model's results, a reference's, and those before unlearning, where known."""

    results: Results
    reference: Results | None
    target: Results | None

    def of(self, split: str) -> Samples:
        """The samples of a split, or none."""
        return self.results.get(split, ())

    def before(self, split: str) -> Samples:
        """The samples of a split before unlearning, or none; `DataError` if they were not given."""
        return self.known("target").get(split, ())

    def known(self, side: str) -> Results:
        """The reference or the target; `DataError` if it was not given."""
        found: Results | None = getattr(self, side)
        if found is None:
            raise DataError(f"needs the results of a {side} model: --{side} RUN")
        return found


class Metric(NamedTuple):
    """One metric of a suite."""

    name: str
    description: str
    source: str
    compute: Callable[[Compared], MetricResult]


@dataclass(frozen=True)
class Suite:
    """One benchmark.

    Attributes:
        name, description, source: as `t3 list suites` shows them; the source is the address of the paper or the data.
        config: the dataclass of its options.
        load: the questions of every split, from a directory, a data set on the hub, or None for the suite's own.
        splits: all that there may be, in the order of a run folder.
        plan: what is measured on them.
        metrics: in the order in which they are shown.
        measuring, examples: options of `MeasureConfig` and `ExampleConfig` whose defaults are others here.
    """

    name: str
    description: str
    source: str
    config: type[SuiteConfig]
    load: Callable[[str | Path | None, Any], Data]
    splits: tuple[str, ...]
    plan: Plan
    metrics: tuple[Metric, ...]
    measuring: Mapping[str, Any] = field(default_factory=dict)
    examples: Mapping[str, Any] = field(default_factory=dict)

    def evaluate(
        self, results: Results, reference: Results | None = None, target: Results | None = None
    ) -> tuple[dict[str, MetricResult], dict[str, str]]:
        """Every metric that the results allow, and for the others why not.

        Args:
            results: of the model in question.
            reference: of a model that never saw the forget set.
            target: of the model before unlearning.
        """
        compared = Compared(results, reference, target)
        computed: dict[str, MetricResult] = {}
        reasons: dict[str, str] = {}
        for metric in self.metrics:
            try:
                computed[metric.name] = metric.compute(compared)
            except DataError as error:
                reasons[metric.name] = str(error)
        return computed, reasons


def find_suite(name: str) -> Suite:
    """The suite of this name; `ConfigError` with the nearest name if there is none."""
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(f"no suite {name!r}{hint}; must be one of {', '.join(NAMES)}")
    suite: Suite = importlib.import_module(f"tempertilt.suites.{name}").SUITE
    return suite


def suites() -> list[Suite]:
    """All suites."""
    return [find_suite(name) for name in NAMES]


def local_directory(source: str | Path | None, what: str) -> Path | None:
    """The directory that holds a suite's files, None for a data set on the hub.

    Raises:
        DataError: it is neither.
    """
    if source is None:
        return None
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    if isinstance(source, Path) or directory.exists() or str(source).count("/") != 1:
        raise DataError(f"no directory {str(source)!r}; must be a directory of {what} files or a dataset on the hub")
    return None


def text_of(row: Mapping[str, object], name: str, where: str, suite: str) -> str:
    """A text of a row that is not empty; `DataError` if it is not there."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: not a row of {suite}; must have a text {name!r} that is not empty")
    if fault := half_pair(value):
        raise DataError(f"{where}: {name!r} has {fault}; must be Unicode text")
    return value
