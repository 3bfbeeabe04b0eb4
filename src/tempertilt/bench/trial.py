"""A trial: one method at one setting and seed, measured on one part of the questions; its key is a hash of all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tempertilt.bench.config import EXTRAS, BenchConfig, Setting, source_digest
from tempertilt.config.keys import key_of
from tempertilt.data.batches import spread
from tempertilt.data.records import Record, load_records
from tempertilt.errors import DataError
from tempertilt.suites.items import Item
from tempertilt.suites.tofu import TofuConfig, load_tofu

PARTS = ("validation", "report")
SPEC, RESULT, FAILURE, EVALUATION = "trial.json", "result.json", "failure.json", "eval"


@dataclass(frozen=True)
class Data:
    """Records to unlearn and to keep, and the questions of each part by split."""

    forget: list[Record]
    retain: list[Record]
    parts: dict[str, dict[str, list[Item]]]


def load_data(config: BenchConfig) -> Data:
    """Records and questions of a benchmark. Questions of one document are all in one part.

    Raises:
        DataError: a file is missing, or a part would be left without questions.
    """
    directory = Path(config.data_dir).expanduser()
    records = {name: load_records(str(directory / f"{name}.jsonl")) for name in ("forget", "retain")}
    documents = {(r.question, r.answer): r.document for of in records.values() for r in of}
    by_question = {r.question: r.document for of in records.values() for r in of}
    questions = load_tofu(directory, TofuConfig(split=config.split))
    parts: dict[str, dict[str, list[Item]]] = {part: {} for part in PARTS}
    for split, items in questions.items():
        names = [
            documents.get((item.question, item.answer), by_question.get(item.question, f"{i}")) for i, item in enumerate(items)
        ]
        held = validation_documents(names, config.validation_fraction, config.split_seed)
        for part in PARTS:
            limit = config.evaluation.limits(part).get(split)
            if limit == 0:
                continue
            chosen = [item for item, name in zip(items, names) if (name in held) == (part == "validation")]
            if not chosen:
                raise DataError(f"the {part} part has no questions of {split}, which has {len(set(names))} documents")
            parts[part][split] = chosen if limit is None else spread(chosen, limit)
    return Data(records["forget"], records["retain"], parts)


def validation_documents(names: Sequence[str], fraction: float, seed: int) -> set[str]:
    """A share of the distinct names, at least one, and not all."""
    distinct = sorted(set(names))
    count = min(len(distinct) - 1, max(1, round(fraction * len(distinct))))
    return {distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))[:count]}


@dataclass(frozen=True)
class Trial:
    """What a trial's process is told, JSON-ready but for `key` and `directory`."""

    contender: str
    setting: Setting
    seed: int
    part: str
    key: str
    directory: Path

    @property
    def name(self) -> str:
        """For logs and trackers."""
        return f"{self.contender} {self.part} seed {self.seed} {self.key[:8]}"

    def result(self) -> dict[str, Any] | None:
        """What the trial found, None if it has not finished."""
        return _read(self.directory / RESULT, self.key)

    @property
    def has_samples(self) -> bool:
        """Whether the samples of its evaluation are there; a clone has results without them."""
        return (self.directory / EVALUATION).is_dir()

    def failure(self) -> str | None:
        """Why the trial failed, None if it did not."""
        content = _read(self.directory / FAILURE, self.key)
        return None if content is None else str(content["error"])


def _read(path: Path, key: str) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("key") == key else None


class Trials:
    """Makes the trials of a benchmark, with their keys."""

    def __init__(self, config: BenchConfig, data: Data, output_dir: Path) -> None:
        self.config, self.output_dir = config, output_dir
        self._shared = {
            "target": [source_digest(config.model), source_digest(config.peft_adapter)],
            "dtype": [config.device, config.dtype],
            "examples": asdict(config.examples),
        }
        self._records = key_of(records=[[record.key, record.document] for record in (*data.forget, *data.retain)])
        self._questions = {part: key_of(questions=_items(splits)) for part, splits in data.parts.items()}

    @cached_property
    def _reference(self) -> list[Any]:
        return [source_digest(self.config.reference_model), source_digest(self.config.reference_peft_adapter)]

    def _evaluation(self, part: str) -> dict[str, Any]:
        """What decides how the questions of a part are measured."""
        options = self.config.evaluation
        always = [name for name in asdict(options) if "questions" not in name and name not in EXTRAS]
        return {name: asdict(options)[name] for name in always} | options.extras(part)

    def trial(self, contender: str, setting: Setting, seed: int, part: str) -> Trial:
        """One trial."""
        method = setting.build()
        content: dict[str, Any] = self._shared | {
            "method": setting.method,
            "recipe": method.recipe(),
            "seed": seed if method.is_random else 0,
            "records": self._records,
            "questions": self._questions[part],
            "evaluation": self._evaluation(part),
            "budget": asdict(self.config.budget),
            "code": source_of(method),
        }
        if setting.method in ("reference", "oracle") or "divergence" in content["evaluation"]:
            content["reference"] = self._reference
        key = key_of("examples", "measure", "trial", *method.steps, **content)
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in setting.method)  # rows with one key share its folder
        return Trial(contender, setting, content["seed"], part, key, self.output_dir / "trials" / f"{safe}-{key[:12]}")


def source_of(method: Any) -> str:
    """A hash of the file that a method outside this package is written in, empty for those inside."""
    import inspect

    module = inspect.getmodule(type(method))
    if module is None or module.__name__.startswith("tempertilt.") or not module.__file__:
        return ""
    return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()[:32]


def _items(splits: Mapping[str, Sequence[Item]]) -> dict[str, list[Any]]:
    return {split: [[i.question, i.answer, i.paraphrase, i.perturbed] for i in items] for split, items in splits.items()}
