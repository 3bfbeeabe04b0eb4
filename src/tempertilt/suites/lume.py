"""LUME, the data of SemEval-2025 task 4 (Ramakrishna et al., arXiv 2502.15097; Apache-2.0): stories, invented persons, real ones.

Its formulas are those of the task's own script: regurgitation is the ROUGE-L recall of completions, knowledge the exact match of
answers, both by task; membership is an attack by loss on whole documents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from tempertilt import metrics
from tempertilt.config.options import option
from tempertilt.data.records import load_rows
from tempertilt.errors import DataError
from tempertilt.metrics.result import MetricResult, harmonic_mean
from tempertilt.metrics.samples import Samples
from tempertilt.suites.families import (
    OWN,
    gate_open,
    ks_tokens,
    leakage_metrics,
    membership_metrics,
    sampling_metrics,
    unchanged,
)
from tempertilt.suites.items import Item, Plan
from tempertilt.suites.suite import Compared, Data, Metric, PromptConfig, Suite, local_directory, text_of

URL = "https://arxiv.org/abs/2502.15097"
HUB_ID = "llmunlearningsemeval2025organization/semeval25-unlearning-dataset-public"
TASKS = ("Task1", "Task2", "Task3")
KINDS = {"sc": "regurgitation", "qa": "knowledge"}
SETS = ("forget", "retain")


@dataclass(frozen=True)
class LumeConfig(PromptConfig):
    """Which part of LUME."""

    lume_task: str | None = option(
        None, "lume: Task1 (stories), Task2 (invented persons with PII), Task3 (real persons); all if not given", choices=TASKS
    )


def load_lume(source: str | Path | None, config: LumeConfig) -> Data:
    """The completions and questions of forget and retain.

    Args:
        source: a directory with forget.jsonl and retain.jsonl; with holdout.jsonl (rows as these, never seen) and with
            member.jsonl and nonmember.jsonl (rows with a `document`) membership is measured, too. Or a data set on the hub with
            the splits forget_train and retain_train; None is the task's own, for which the hub asks for a token.

    Raises:
        DataError: a file is missing, or a row is not one of LUME's.
    """
    directory = local_directory(source, "LUME's .jsonl")
    if directory is None:
        return {name: _items(f"{source or HUB_ID}:default:{name}_train", config) for name in SETS}
    out = {}
    for split in (*SETS, "holdout"):
        path = directory / f"{split}.jsonl"
        if path.is_file():
            out[split] = _items(path, config)
        elif split in SETS:
            raise DataError(f"{str(directory)!r} has no {path.name}; must have forget.jsonl and retain.jsonl")
    for split in ("member", "nonmember"):
        if (path := directory / f"{split}.jsonl").is_file():
            rows = load_rows(path, limit=config.limit)
            out[split] = [Item("", text_of(row, "document", where, "LUME"), None, (), where, kind="text") for where, row in rows]
    return out


def _items(source: str | Path, config: LumeConfig) -> list[Item]:
    chosen = (_item(where, row, config) for where, row in load_rows(source) if config.lume_task in (None, row.get("task")))
    items = list(islice(chosen, config.limit))
    if not items:
        raise DataError(f"{source}: no rows of {config.lume_task}; must be at least one, or another --lume-task")
    return items


def _item(where: str, row: Mapping[str, object], config: LumeConfig) -> Item:
    name, task, question, answer = (text_of(row, field, where, "LUME") for field in ("id", "task", "input", "output"))
    kind = re.search(r"(sc|qa)\d$", name)
    if kind is None or task not in TASKS:
        raise DataError(
            f"{where}: id is {name!r} and task {task!r}; must be an id that ends in sc or qa and a digit, and one of "
            f"{', '.join(TASKS)}"
        )
    return Item(question, answer, None, (), where, kind=config.kind, group=f"{task} {KINDS[kind[1]]}")


# --- metrics -------------------------------------------------------------------------------------------------------------


def part(samples: Samples, score: str, task: str | None = None, higher_is_better: bool | None = None) -> MetricResult:
    """Regurgitation or knowledge of a set, of one task or of all.

    Raises:
        DataError: there are no such samples.
    """
    chosen = [sample for sample in samples if sample.group.endswith(score) and task in (None, sample.group.split(" ")[0])]
    if not chosen:
        raise DataError(f"there are no samples of {' '.join(filter(None, (task, score)))}")
    compute = metrics.rouge if score == "regurgitation" else metrics.exact_match
    return compute(chosen, name=score, higher_is_better=higher_is_better)


def task_aggregate(compared: Compared) -> MetricResult:
    """Harmonic mean of regurgitation and knowledge by task, forget and retain; 1 - score for forget."""
    parts: dict[str, MetricResult] = {}
    for of, task, score in product(SETS, TASKS, KINDS.values()):
        if any(sample.group == f"{task} {score}" for sample in compared.of(of)):
            parts[f"{of} {task} {score}"] = part(compared.of(of), score, task)
    values = {name: 1 - each.value if name.startswith("forget") else each.value for name, each in parts.items()}
    if not values:
        raise DataError("task_aggregate: there are no samples of forget and retain")
    return MetricResult(
        name="task_aggregate",
        value=harmonic_mean(list(values.values())),
        n=sum(each.n for each in parts.values()),
        n_missing=sum(each.n_missing for each in parts.values()),
        higher_is_better=True,
        interval=None,
        per_sample=(),
        protocol="harmonic mean over tasks and sets of regurgitation and knowledge, 1 - score on the forget set",
        details=values,
    )


def document_auc(compared: Compared) -> MetricResult:
    """AUC of the attack by loss on whole documents, members against non-members; 0.5 is best."""
    for split in ("member", "nonmember"):
        if not compared.of(split):
            raise DataError(f"there is no {split}.jsonl beside forget.jsonl, with whole documents in 'document'")
    return metrics.membership({"forget": compared.of("member"), "holdout": compared.of("nonmember")}, "loss")


def membership_score(compared: Compared) -> MetricResult:
    """1 - 2 |AUC - 1/2| of the attack by loss on whole documents."""
    area = document_auc(compared)
    return MetricResult(
        name="membership_score",
        value=1 - 2 * abs(area.value - 0.5),
        n=area.n,
        n_missing=area.n_missing,
        higher_is_better=True,
        interval=None,
        per_sample=(),
        protocol="1 - 2 |AUC - 1/2|, AUC of the attack by loss, members against non-members",
        details={"auc": area.value},
    )


def _score(of: str, score: str, task: str | None) -> Metric:
    what = "ROUGE-L recall of completions" if score == "regurgitation" else "exact match of answers"
    name = "_".join(filter(None, (of, task, score)))
    return Metric(name, f"{what}, {task or 'all tasks'}, {of}", URL,
                  lambda c: part(c.of(of), score, task, higher_is_better=of == "retain"))  # fmt: skip


METRICS = (
    *(_score(of, score, task) for of, task, score in product(SETS, (None, *TASKS), KINDS.values())),
    Metric("task_aggregate", "harmonic mean of these by task, 1 - score for forget", URL, task_aggregate),
    Metric("mia_documents", "AUC of the attack by loss on whole documents, member.jsonl and nonmember.jsonl", URL, document_auc),
    Metric("membership_score", "1 - 2 |AUC - 1/2| of that attack", URL, membership_score),
    *membership_metrics(),
    ks_tokens("log_probs", "log-probabilities", OWN),
    ks_tokens("standardised", "log-probabilities, standardised as in Min-K++,", "https://arxiv.org/abs/2404.02936"),
    *leakage_metrics(),
    *sampling_metrics("forget"),
    *sampling_metrics("retain"),
    gate_open("forget", "forget", True),
    gate_open("retain", "retain", False),
    unchanged("retain", "retain", "retain"),
)

SUITE = Suite(
    name="lume",
    description="SemEval-2025 task 4: stories, invented persons with PII, real persons; regurgitation, knowledge, membership",
    source=URL,
    config=LumeConfig,
    load=load_lume,
    splits=(*SETS, "holdout", "member", "nonmember"),
    plan=Plan(generated=SETS, token_level=(*SETS, "holdout"), drawn=SETS, gated=SETS),
    metrics=METRICS,
    measuring={"max_new_tokens": 256},
)
