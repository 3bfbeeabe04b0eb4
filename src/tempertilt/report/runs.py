"""What a report is made of: run folders of `t3 eval`, read and compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempertilt.errors import DataError
from tempertilt.metrics.result import MetricResult
from tempertilt.metrics.samples import Results
from tempertilt.suites.logs import read_log
from tempertilt.suites.run import ENVIRONMENT, RESULTS, TIMING
from tempertilt.suites.suite import NAMES, Suite, find_suite


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        name: in the report.
        results: its samples by split.
        metrics, not_computed: its metrics, and for the others the reason, by name.
        content: of its results.json.
        timing, environment: of the files of these names.
    """

    name: str
    directory: Path
    results: Results
    metrics: dict[str, MetricResult]
    not_computed: dict[str, str]
    content: dict[str, Any]
    timing: dict[str, Any]
    environment: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        reference: results of a model that never saw the forget set, and `reference_name`, empty where there is none.
        before: the run of the model before unlearning.
    """

    runs: tuple[Run, ...]
    reference: Results | None
    reference_name: str
    before: Run | None

    @property
    def after(self) -> list[Run]:
        """The runs without that of the model before unlearning."""
        before = None if self.before is None else self.before.directory.resolve()
        return [run for run in self.runs if run.directory.resolve() != before]


def compare(
    directories: Sequence[str | Path], reference: str | Path | None = None, target: str | Path | None = None
) -> Comparison:
    """Read run folders and compute their metrics anew, all against the same reference and target.

    Args:
        directories: run folders, at least one; where there are several and no target, the first is the model before unlearning.
        reference: results of a model that never saw the forget set; by default the one that the runs themselves name.
        target: a run folder of the model before unlearning.

    Raises:
        DataError: a folder is not a finished run, or two runs were measured on different suites or questions.
    """
    if not directories:
        raise DataError("name at least one run folder of t3 eval")
    folders = [Path(directory) for directory in directories]
    contents = [_content(folder) for folder in folders]
    suite = _suite_of(folders, contents)
    reference = _reference_of(contents) if reference is None else reference
    reference_results = None if reference is None else read_log(reference, suite.splits)
    before = Path(target) if target is not None else folders[0] if len(folders) > 1 else None
    target_results = None if before is None else read_log(before, suite.splits)
    runs = tuple(
        _run(suite, name, folder, content, reference_results, target_results)
        for name, folder, content in zip(_names(folders), folders, contents)
    )
    before_run = next((run for run in runs if before is not None and run.directory.resolve() == before.resolve()), None)
    if before is not None and before_run is None:
        before_run = _run(suite, before.resolve().name, before, _content(before), reference_results, target_results)
    _check_same_questions([*runs, *([] if before_run is None else [before_run])])
    reference_name = "" if reference is None else Path(reference).resolve().name
    return Comparison(runs, reference_results, reference_name, before_run)


def _reference_of(contents: Sequence[dict[str, Any]]) -> str | None:
    """The reference that the runs name, if they name one alone and it is there."""
    names = {content["reference"] for content in contents if content.get("reference")}
    return next((name for name in names if len(names) == 1 and Path(name).exists()), None)


def _content(directory: Path) -> dict[str, Any]:
    path = directory / RESULTS
    if not path.is_file():
        raise DataError(f"{str(directory)!r} has no {RESULTS}; name a run folder that t3 eval has finished")
    return _json(path)


def _suite_of(folders: Sequence[Path], contents: Sequence[dict[str, Any]]) -> Suite:
    """The one suite that all runs are of."""
    first = contents[0].get("suite")
    for folder, content in zip(folders, contents):
        if (name := content.get("suite")) != first or name not in NAMES:
            other = "" if name == first else f", {str(folders[0])!r} of {first!r}"
            raise DataError(f"{str(folder)!r} is of the suite {name!r}{other}; must all be of one suite: {', '.join(NAMES)}")
    return find_suite(str(first))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{str(path)!r} holds {type(content).__name__}; must be an object")
    return content


def _names(directories: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as tell them apart."""
    paths = [directory.resolve() for directory in directories]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise DataError("a run folder is named twice")


def _run(
    suite: Suite, name: str, directory: Path, content: dict[str, Any], reference: Results | None, target: Results | None
) -> Run:
    results = read_log(directory, suite.splits)
    metrics, reasons = suite.evaluate(results, reference, target)
    return Run(name, directory, results, metrics, reasons, content, _json(directory / TIMING), _json(directory / ENVIRONMENT))


def _check_same_questions(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for split in (name for name in first.results if name in run.results):
            if _questions(first, split) != _questions(run, split):
                raise DataError(f"{first.name} and {run.name} were measured on different {split} questions: not comparable")


def _questions(run: Run, split: str) -> list[tuple[str, str]]:
    return [(sample.question, sample.answer) for sample in run.results[split]]
