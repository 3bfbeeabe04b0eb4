"""A run of a suite: measured once, written to a run folder, reused and resumed by its key."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tempertilt.data.examples import ExampleConfig
from tempertilt.data.lines import json_text
from tempertilt.environment import environment, peak_memory_mib
from tempertilt.errors import ConfigError, DataError, TemperTiltError
from tempertilt.metrics.result import MetricResult
from tempertilt.metrics.samples import Results
from tempertilt.models.base import BaseModel
from tempertilt.storage import make_dir, read_stored, remove_unfinished, write_text
from tempertilt.suites.items import Item, MeasureConfig, Plan, check_questions, cut_answers, questions_of
from tempertilt.suites.journal import Journal
from tempertilt.suites.logs import COMPRESSED, SAMPLES, read_log, write_samples
from tempertilt.suites.measure import COMPARED, measure, model_digest, run_key
from tempertilt.suites.suite import Suite, SuiteConfig

log = logging.getLogger("tempertilt")

RESULTS, CONFIG, ENVIRONMENT, TIMING, JOURNAL = "results.json", "config.yaml", "env.json", "timing.json", ".journal.jsonl"


@dataclass(frozen=True)
class SuiteRun:
    """A finished run: where it is, whether it was there already, its samples, metrics, and what could not be computed."""

    directory: Path
    reused: bool
    results: Results
    metrics: dict[str, MetricResult]
    not_computed: dict[str, str]
    seconds: dict[str, float]


def run_suite(
    suite: Suite,
    model: Any,
    tokenizer: Any,
    data: Mapping[str, Sequence[Item]],
    output_dir: Path,
    *,
    config: SuiteConfig | None = None,
    measuring: MeasureConfig | None = None,
    examples: ExampleConfig | None = None,
    reference: str | Path | None = None,
    reference_model: BaseModel | None = None,
    target: str | Path | None = None,
    describe: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> SuiteRun:
    """Measure a model on a suite and write the run folder.

    The samples of a finished run with the same key (weights, adapter, data, options) are reused, and an interrupted one resumes.
    One with another key is refused, or with `overwrite` replaced at the end.

    Args:
        model: any object with the forward and generate of a transformers causal LM: plain, PEFT, `T3ForCausalLM`.
        data: as the suite's `load` gives it.
        output_dir: made if needed; other files in it are refused.
        reference, target: results (anything that `read_log` reads) of a model that never saw the forget set, and of the model
            before unlearning.
        reference_model: a model that never saw the forget set, run beside `model` at the forget answers.
        describe: how the model was named, for the record.
        config, measuring, examples: options; by default the suite's.
        plan: which splits get what; by default the suite's.
        overwrite: measure again even if the key is the same, and replace a run with another.

    Raises:
        TemperTiltError: a file, an option or the directory is not usable; each says what is valid.
    """
    config, plan = config or suite.config(), plan or suite.plan
    measuring, examples = measuring or MeasureConfig(**suite.measuring), examples or ExampleConfig(**suite.examples)
    others = [None if path is None else read_log(path, suite.splits) for path in (reference, target)]
    data = {split: cut_answers(split, items, tokenizer, plan, measuring) for split, items in data.items()}
    questions = {split: questions_of(items, tokenizer, examples, **plan.encoding(split)) for split, items in data.items()}
    for split, items in data.items():
        check_questions(model, tokenizer, items, questions[split])
    options = {**asdict(config), **asdict(measuring), **asdict(examples)}
    if plan != suite.plan:
        options["plan"] = plan.settings
    if reference_model is not None:
        _check_comparable(suite, data, tokenizer, reference_model.tokenizer)
        options["reference_digest"] = model_digest(reference_model.model)
    weights = model_digest(model)
    key = run_key(weights, data, questions, options)
    _check_directory(output_dir)
    # sampled answers are units by themselves: to want more of them, or none, undoes nothing else
    part_key = run_key(weights, data, questions, {name: options[name] for name in options.keys() - {"draws", "seed"}})
    if overwrite:
        (output_dir / JOURNAL).unlink(missing_ok=True)
    journal = Journal(output_dir / JOURNAL, part_key)
    samples, seconds = (None, {}) if overwrite or journal.units else _finished(output_dir, key, suite)
    reused = samples is not None
    if samples is None:
        other = None if reference_model is None else reference_model.model
        samples, seconds = _measure(
            suite, model, tokenizer, data, questions, plan, measuring, output_dir, journal, other, progress
        )
    metrics, reasons = suite.evaluate(samples, *others)
    content = {
        "suite": suite.name,
        "key": key,
        "model": {**(describe or {}), "digest": weights},
        "questions": {split: len(of) for split, of in samples.items()},
        "reference": None if reference is None else str(reference),
        "target": None if target is None else str(target),
        "samples_sha256": _sha256(output_dir / SAMPLES),
        "metrics": {name: result.summary() for name, result in metrics.items()},
        "not_computed": reasons,
    }
    write_text(output_dir / CONFIG, yaml.safe_dump({"suite": suite.name, **(describe or {}), **options}, sort_keys=True))
    write_text(output_dir / RESULTS, json_text(content, indent=1) + "\n")
    journal.remove()
    return SuiteRun(output_dir, reused, samples, metrics, reasons, seconds)


def _check_comparable(suite: Suite, data: Mapping[str, Sequence[Item]], tokenizer: Any, other: Any) -> None:
    if COMPARED not in data:
        raise ConfigError(f"the suite {suite.name} has no forget answers to compare models at: leave out the reference model")
    if tokenizer.get_vocab() != other.get_vocab():
        raise DataError(
            "the reference model's tokenizer has other tokens than the model's; must be the same: name a reference of the same "
            "base model"
        )


def _check_directory(directory: Path) -> None:
    make_dir(directory)
    remove_unfinished(directory)
    ours = {
        RESULTS,
        CONFIG,
        ENVIRONMENT,
        TIMING,
        JOURNAL,
        SAMPLES,
        COMPRESSED,
        "report.html",
        "report.md",
        "report.tex",
        "report.json",
    }
    if foreign := sorted(path.name for path in directory.iterdir() if path.name not in ours):
        raise TemperTiltError(f"{str(directory)!r} holds other files ({', '.join(foreign[:5])}); name a new or empty directory")


def _finished(directory: Path, key: str, suite: Suite) -> tuple[Results | None, dict[str, float]]:
    """The samples of the run `key`, if it is finished here."""
    if not (directory / RESULTS).is_file():
        return None, {}
    try:
        content = json.loads((directory / RESULTS).read_text(encoding="utf-8"))
        known = content["key"], content["samples_sha256"]
        seconds = json.loads((directory / TIMING).read_text(encoding="utf-8"))["seconds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{str(directory / RESULTS)!r} is damaged ({error}); measure again with --overwrite") from error
    if known[0] != key:
        raise TemperTiltError(
            f"{str(directory)!r} holds the results of another model, other data or other options; name another directory, or "
            "replace them with --overwrite"
        )
    if _sha256(directory / SAMPLES) != known[1]:
        raise DataError(f"{str(directory / SAMPLES)!r} is not what this run wrote; measure again with --overwrite")
    log.warning("%s holds the samples of this model, data and options: reused", directory)
    return read_log(directory, suite.splits), seconds


def _sha256(path: Path) -> str:
    """The hash of the content of a file, compressed or not; empty where there is none, or not a whole one."""
    try:
        return hashlib.sha256(read_stored(path)).hexdigest()
    except OSError:
        return ""


def _measure(
    suite: Suite,
    model: Any,
    tokenizer: Any,
    data: Mapping[str, Sequence[Item]],
    questions: Any,
    plan: Plan,
    config: MeasureConfig,
    directory: Path,
    journal: Journal,
    reference: Any,
    progress: bool,
) -> tuple[Results, dict[str, float]]:
    """Samples and seconds, written into the run folder; the results of an earlier run stay until all is measured."""
    if journal.units:
        log.warning("going on with an interrupted run: %d parts are done", len(journal.units))
    samples, seconds = measure(model, tokenizer, data, questions, plan, config, journal, reference=reference, progress=progress)
    for name in (RESULTS, SAMPLES, COMPRESSED):
        (directory / name).unlink(missing_ok=True)
    ordered = {split: samples[split] for split in suite.splits if split in samples}
    write_text(directory / SAMPLES, write_samples(ordered))
    write_text(directory / ENVIRONMENT, json.dumps(environment(), indent=1) + "\n")
    answers = {split: sum(len(q.answers) for q in of) for split, of in questions.items()}
    seconds = {name: round(value, 3) for name, value in seconds.items()}
    timing = {"seconds": seconds, "answers_scored": answers, "peak_memory_mib": peak_memory_mib()}
    write_text(directory / TIMING, json.dumps(timing, indent=1) + "\n")
    return read_log(directory, suite.splits), seconds
