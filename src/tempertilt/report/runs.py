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
from tempertilt.suites.tofu import ENVIRONMENT, RESULTS, TIMING, evaluate, read_log


@dataclass(frozen=True)
class Run:
    """One run folder: its name in the report, its samples, metrics, and what it was made with."""

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
    """Runs side by side, with what they are compared to."""

    runs: tuple[Run, ...]
    reference: Results | None
    reference_name: str
    before: Run | None


def compare(
    directories: Sequence[str | Path], reference: str | Path | None = None, target: str | Path | None = None
) -> Comparison:
    """Read run folders and compute their metrics anew, all against the same reference and target.

    Args:
        directories: run folders, at least one; where there are several and no target, the first is the model before unlearning.
        reference: results of a model that never saw the forget set; by default the one that the runs themselves name.
        target: a run folder of the model before unlearning.

    Raises:
        DataError: a folder is not a finished run, or two runs were measured on different questions.
    """
    if not directories:
        raise DataError("name at least one run folder of t3 eval")
    contents = [_content(Path(directory)) for directory in directories]
    if reference is None:
        named = {content["reference"] for content in contents if content.get("reference")}
        found = next(iter(named)) if len(named) == 1 else None
        reference = found if found is not None and Path(found).exists() else None
    known = None if reference is None else read_log(reference)
    before = Path(target) if target is not None else (Path(directories[0]) if len(directories) > 1 else None)
    earlier = None if before is None else read_log(before)
    names = _names([Path(directory) for directory in directories])
    runs = tuple(_run(name, Path(d), c, known, earlier) for name, d, c in zip(names, directories, contents))
    first = next((run for run in runs if before is not None and run.directory.resolve() == before.resolve()), None)
    if before is not None and first is None:
        first = _run(before.resolve().name, before, _content(before), known, earlier)
    _check_same_questions([*runs, *([] if first is None else [first])])
    return Comparison(runs, known, "" if reference is None else Path(reference).resolve().name, first)


def _content(directory: Path) -> dict[str, Any]:
    path = directory / RESULTS
    if not path.is_file():
        raise DataError(f"{str(directory)!r} has no {RESULTS}; valid is a run folder that t3 eval has finished")
    content = _json(path)
    if content.get("suite") != "tofu":
        raise DataError(f"{str(path)!r} is of the suite {content.get('suite')!r}; valid is tofu")
    return content


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{str(path)!r} holds {type(content).__name__}; valid is an object")
    return content


def _names(directories: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as tell them apart."""
    paths = [directory.resolve() for directory in directories]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise DataError("a run folder is named twice")


def _run(name: str, directory: Path, content: dict[str, Any], reference: Results | None, target: Results | None) -> Run:
    results = read_log(directory)
    metrics, reasons = evaluate(results, reference, target)
    return Run(name, directory, results, metrics, reasons, content, _json(directory / TIMING), _json(directory / ENVIRONMENT))


def _check_same_questions(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for split in (split for split in first.results if split in run.results):
            ours, theirs = ([(s.question, s.answer) for s in of.results[split]] for of in (first, run))
            if ours != theirs:
                raise DataError(f"{first.name} and {run.name} were measured on different {split} questions: not comparable")
