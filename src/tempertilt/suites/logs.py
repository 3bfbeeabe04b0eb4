"""Per-sample results on disk: our own run folders, and the public logs of the TOFU authors and of open-unlearning."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from tempertilt.data.lines import decode_text, json_text, split_lines
from tempertilt.errors import DataError
from tempertilt.metrics.samples import Draw, Results, Sample
from tempertilt.storage import read_stored, stored
from tempertilt.suites.checks import check_sample

log = logging.getLogger("tempertilt")

SAMPLES = "samples.jsonl"
COMPRESSED = f"{SAMPLES}.gz"

SPLITS = ("forget", "retain", "real_authors", "world_facts", "holdout")
"""Of TOFU."""

TOFU_FILES = {
    "eval_log_forget.json": "forget",
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
}
"""The files of the TOFU authors' evaluation (github.com/locuslab/tofu), alone or as the keys of one file."""

WHOLE_RUNS = (SAMPLES, "TOFU_EVAL.json", "eval_log_aggregated.json")
"""What a folder of results may hold: ours, open-unlearning's, the TOFU authors'."""

OPEN_UNLEARNING_SPLITS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}

VALID = (
    f"a run folder of t3 eval (or its {SAMPLES}), a JSON log of the TOFU authors ({', '.join(TOFU_FILES)}, or one file with "
    "these as keys), or a JSON log of open-unlearning (TOFU_EVAL.json)"
)


def read_log(path: str | Path, splits: Sequence[str] = SPLITS) -> Results:
    """Per-sample results of any known format, by split.

    Args:
        path: a run folder of `t3 eval` or its samples.jsonl, which may be compressed (samples.jsonl.gz); a log of the TOFU
            authors' code, one split or all in one file; a log of open-unlearning; or a folder that holds such logs.
        splits: that a run folder may hold, those of its suite.

    Returns:
        The samples of each split that the log holds; what a log does not state is None or empty in them.

    Raises:
        DataError: the file can't be read or is of none of these formats.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        whole = next((path / name for name in WHOLE_RUNS if stored(path / name)), None)
        parts = [path / name for name in TOFU_FILES if (path / name).is_file()]
        if whole is None and parts:
            return {split: samples for part in parts for split, samples in read_log(part).items()}
        path = whole or path / SAMPLES
    if stored(path) is None:
        raise DataError(f"no results at {str(path)!r}; must be {VALID}")
    try:
        text = decode_text(read_stored(path), str(path))
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read as results: {error}; must be {VALID}") from error
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        return read_samples(text, path, splits)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} cannot be read as results: {error}; must be {VALID}") from error
    try:
        results = {split: [_checked(split, sample) for sample in rows] for split, rows in _foreign(content, path.name).items()}
    except UNREADABLE as error:
        raise DataError(f"{str(path)!r} is a damaged log: {_said(error)}; must be {VALID}") from error
    if not any(results.values()):
        raise DataError(f"{str(path)!r} is not a known log; must be {VALID}")
    return results


UNREADABLE = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)
"""What Python says of values that are not what a log holds."""


def _said(error: Exception) -> str:
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _checked(split: str, sample: Sample) -> Sample:
    try:
        return check_sample(sample)
    except ValueError as error:
        raise ValueError(f"{split} {sample.index}: {error}") from error


def _foreign(log: Any, name: str) -> dict[str, Sequence[Sample]]:
    if not isinstance(log, dict):
        return {}
    if TOFU_FILES.keys() & log.keys():
        return {split: _tofu_samples(log[file]) for file, split in TOFU_FILES.items() if file in log}
    if "avg_gt_loss" in log:
        if name not in TOFU_FILES:
            raise ValueError(f"the name tells the split: it is {name!r}, not one of {', '.join(TOFU_FILES)}")
        return {TOFU_FILES[name]: _tofu_samples(log)}
    return _open_unlearning(log)


# --- the TOFU authors' ---------------------------------------------------------------------------------------------------


def _tofu_samples(log: dict[str, dict[str, Any]]) -> list[Sample]:
    samples = []
    for key, nll in log["avg_gt_loss"].items():
        texts = log.get("generated_text", {}).get(key, ("", None, ""))
        samples.append(
            Sample(
                index=int(key),
                question=texts[0].removeprefix("Question: ").strip(),
                answer=texts[2],
                nll=float(nll),
                paraphrase_nll=_number(log.get("avg_paraphrased_loss", {}).get(key)),
                perturbed_nll=tuple(log.get("average_perturb_loss", {}).get(key, ())),
                generation=texts[1],
                rouge1_recall=_number(log.get("rouge1_recall", {}).get(key)),
                rougeL_recall=_number(log.get("rougeL_recall", {}).get(key)),
            )
        )
    return samples


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


# --- open-unlearning's ---------------------------------------------------------------------------------------------------


def _open_unlearning(log: dict[str, Any]) -> dict[str, Sequence[Sample]]:
    """Samples put together from a log of metrics, each with its `value_by_index`."""
    table = _Table({name.lower(): value for name, value in log.items() if isinstance(value, dict)})
    for short, split in OPEN_UNLEARNING_SPLITS.items():
        table.read(f"{short}_q_a_prob", split, lambda row: {"nll": row["avg_loss"]})
        table.read(f"{short}_q_a_para_prob", split, lambda row: {"paraphrase_nll": row["avg_loss"]})
        table.read(f"{short}_q_a_pert_prob", split, lambda row: {"perturbed_nll": _wrong(row["avg_loss"])})
        table.read(f"{short}_q_a_rouge", split, _generation)
    if "forget_q_a_pert_prob" not in table.log:  # the ratio is all there is
        table.read("forget_truth_ratio", "forget", _ratio)
    for name in ("exact_memorization", "extraction_strength"):
        table.read(name, "forget", lambda row, name=name: {"scores": {name: row["score"]}})  # type: ignore[misc]
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        for side in ("forget", "holdout"):
            part = log.get(f"mia_{attack}", {}).get(side)
            if part is not None:
                table.log[f"mia_{attack}.{side}"] = part
                table.read(f"mia_{attack}.{side}", side, lambda row, attack=attack: {"scores": {attack: row["score"]}})  # type: ignore[misc]
    return table.samples()


def _wrong(nll: Any) -> tuple[float, ...]:
    return tuple(nll) if isinstance(nll, list) else (float(nll),)


def _generation(row: dict[str, Any]) -> dict[str, Any]:
    known = {name: row.get(name) for name in ("rouge1_recall", "rougeL_recall", "rougeL_f1", "generation")}
    return {**known, "answer": row.get("ground_truth") or "", "question": row.get("input") or ""}


def _ratio(row: dict[str, Any]) -> dict[str, Any]:
    """Likelihoods that give the stated truth ratio."""
    score = row["score"]
    if not score > 0:
        raise ValueError(f"a truth ratio is {score!r}; must be a number > 0")
    return {"perturbed_nll": (-math.log(score),), "paraphrase_nll": 0.0}


class _Table:
    """Columns of a log gathered by split and index."""

    def __init__(self, log: dict[str, Any]) -> None:
        self.log = log
        self.rows: dict[str, dict[int, dict[str, Any]]] = {}

    def read(self, name: str, split: str, fields_of: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Put what `fields_of` makes of each value of the metric `name` into the rows of a split."""
        for index, value in self.log.get(name, {}).get("value_by_index", {}).items():
            row = self.rows.setdefault(split, {}).setdefault(int(index), {"scores": {}})
            if value is None or None in value.values():
                continue  # a missing sample
            values = fields_of(value)
            row["scores"] |= values.pop("scores", {})
            row.update(values)

    def samples(self) -> dict[str, Sequence[Sample]]:
        return {split: [Sample(index=i, **rows[i]) for i in sorted(rows)] for split, rows in self.rows.items()}


# --- our own -------------------------------------------------------------------------------------------------------------


def write_samples(results: Results) -> str:
    """JSON lines, one for each sample, split first; what is not measured, or not a finite number, is left out."""
    lines, strange = [], 0
    for split, samples in results.items():
        for sample in samples:
            values = _sparse(sample)
            strange += any(not _is_finite(value) for value in values.values())
            row = {"split": split} | {name: value for name, value in values.items() if _is_finite(value)}
            lines.append(json_text(row, ensure_ascii=False) + "\n")
    if strange:
        log.warning("%d samples hold numbers that are not finite: these count as missing", strange)
    return "".join(lines)


def _sparse(sample: Sample) -> dict[str, Any]:
    defaults = {f.name: f.default if f.default is not MISSING else {} for f in fields(Sample)}
    return {name: value for name, value in asdict(sample).items() if name == "index" or value != defaults[name]}


def _is_finite(value: Any) -> bool:
    numbers = value if isinstance(value, tuple) else (value,)
    return all(math.isfinite(number) for number in numbers if isinstance(number, float))


def sample_from(row: Mapping[str, Any]) -> Sample:
    """A sample from what `write_samples` wrote of it; one of `UNREADABLE` if it is not one."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    values["draws"] = tuple(Draw(**draw) for draw in row.get("draws", ()))
    return check_sample(Sample(**values))


def read_samples(text: str, path: Path, splits: Sequence[str] = SPLITS) -> Results:
    """The samples of each split in JSON lines; `DataError` with file and line where one is not a sample."""
    results: dict[str, list[Sample]] = {}
    for number, line in enumerate(split_lines(text), start=1):
        try:
            row = json.loads(line)
            results.setdefault(row.pop("split"), []).append(sample_from(row))
        except (*UNREADABLE, RecursionError) as error:
            raise DataError(f"{path}:{number}: not a sample: {_said(error)}; must be {VALID}") from error
    if unknown := sorted(map(str, results.keys() - set(splits))):
        raise DataError(f"{path}: unknown splits {', '.join(unknown)}; must be one of {', '.join(splits)}")
    if not results:
        raise DataError(f"{path}: no samples; must be {VALID}")
    return results
