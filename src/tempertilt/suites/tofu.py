"""TOFU (Maini et al., arXiv 2401.06121; data and logs MIT): its splits, what is measured on each, and its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempertilt import metrics
from tempertilt.config.options import option
from tempertilt.data.lines import half_pair
from tempertilt.data.records import load_rows
from tempertilt.errors import DataError
from tempertilt.suites.families import (
    OPEN_UNLEARNING_URL,
    OWN,
    TOFU_URL,
    answer_metrics,
    ks_tokens,
    leakage_metrics,
    membership_metrics,
    sampling_metrics,
)
from tempertilt.suites.items import Item, Plan, questions_of
from tempertilt.suites.logs import SPLITS, read_log
from tempertilt.suites.run import SuiteRun, run_suite
from tempertilt.suites.suite import Metric, Suite, SuiteConfig, local_directory

__all__ = ["METRICS", "TofuConfig", "TofuRun", "evaluate", "load_split", "load_tofu", "questions_of", "read_log", "run_tofu"]

HUB_ID = "locuslab/TOFU"
FORGET_SPLITS = ("forget01", "forget05", "forget10")
REQUIRED = ("forget", "retain", "real_authors", "world_facts")
PLAN = Plan(generated=REQUIRED, token_level=("forget", "retain", "holdout"), drawn=("forget", "retain"))


@dataclass(frozen=True)
class TofuConfig(SuiteConfig):
    """Which part of TOFU."""

    split: str = option(
        "forget10", "tofu: forget01, forget05 or forget10 (a directory may have one of its own)", choices=FORGET_SPLITS
    )


def split_names(split: str) -> dict[str, tuple[str, ...]]:
    """The names under which each split may be found, the first on the hub and in a whole copy, the second in a cut."""
    return {
        "forget": (f"{split}_perturbed", "forget_perturbed"),
        "retain": ("retain_perturbed",),
        "real_authors": ("real_authors_perturbed",),
        "world_facts": ("world_facts_perturbed",),
        "holdout": (split.replace("forget", "holdout"), "holdout"),
    }


def load_tofu(source: str | Path | None, config: TofuConfig) -> dict[str, list[Item]]:
    """The questions of every split.

    Args:
        source: a directory of .jsonl files named as on the hub (or forget_perturbed.jsonl, holdout.jsonl for a cut of its own),
            or a dataset on the hub; None is locuslab/TOFU.

    Raises:
        DataError: a split is missing (holdout may be: membership is then not measured), or a row is not one of TOFU's.
    """
    directory = local_directory(source, "TOFU's .jsonl")
    if directory is None:
        names = {split: f"{source or HUB_ID}:{found[0]}:train" for split, found in split_names(config.split).items()}
        return {split: load_split(name, limit=config.limit) for split, name in names.items()}
    out = {}
    for split, found in split_names(config.split).items():
        path = next((path for name in found if (path := directory / f"{name}.jsonl").is_file()), None)
        if path is not None:
            out[split] = load_split(path, limit=config.limit)
        elif split in REQUIRED:
            raise DataError(
                f"{str(directory)!r} has no {' or '.join(f'{name}.jsonl' for name in found)}, the {split} split of TOFU"
            )
    return out


def load_split(source: str | Path, *, limit: int | None = None) -> list[Item]:
    """The questions of one file, or of one split of a dataset on the hub (org/name:config:split)."""
    return [_item(where, row) for where, row in load_rows(source, limit=limit)]


def _item(where: str, row: Mapping[str, object]) -> Item:
    question, answer, paraphrase = (row.get(name) for name in ("question", "answer", "paraphrased_answer"))
    wrong = row.get("perturbed_answer") or []
    wrong = [wrong] if isinstance(wrong, str) else wrong
    texts = [question, answer, *([] if paraphrase is None else [paraphrase]), *(wrong if isinstance(wrong, list) else [None])]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"{where}: not a row of TOFU; must have a question and an answer, and optionally a paraphrased_answer and a list "
            "of perturbed_answer, none of them empty"
        )
    assert isinstance(wrong, list)
    if fault := next((fault for text in texts if (fault := half_pair(str(text)))), ""):
        raise DataError(f"{where}: a text has {fault}; must be Unicode text")
    return Item(str(question), str(answer), None if paraphrase is None else str(paraphrase), tuple(wrong), where)


# --- metrics -------------------------------------------------------------------------------------------------------------

METRICS: tuple[Metric, ...] = (
    Metric("forget_quality", "p-value: truth ratios on forget as those of a model that never saw it?", TOFU_URL,
           lambda c: metrics.forget_quality(c.results, c.reference)),
    Metric("ks_distance", "distance D of the truth ratios on forget from the reference's", TOFU_URL,
           lambda c: metrics.ks_distance(c.results, c.reference)),
    Metric("forget_quality_arithmetic", "the same with the paper's arithmetic mean over wrong answers", TOFU_URL,
           lambda c: metrics.forget_quality(c.results, c.reference, mean="arithmetic")),
    ks_tokens("log_probs", "log-probabilities", OWN),
    ks_tokens("standardised", "log-probabilities, standardised as in Min-K++,", "https://arxiv.org/abs/2404.02936"),
    Metric("model_utility", "harmonic mean of nine on retain, real authors, world facts", TOFU_URL,
           lambda c: metrics.model_utility(c.results)),
    Metric("mu_rouge", "harmonic mean of ROUGE-L recall on retain, real authors, world facts", "https://arxiv.org/abs/2602.10217",
           lambda c: metrics.mu_rouge(c.results)),
    *answer_metrics("forget", "forget"),
    *answer_metrics("retain", "retain"),
    *answer_metrics("ra", "real_authors"),
    *answer_metrics("wf", "world_facts"),
    Metric("exact_memorization", "share of answer tokens that are the argmax, forget", "https://arxiv.org/abs/2205.10770",
           lambda c: metrics.exact_memorisation(c.of("forget"))),
    Metric("extraction_strength", "share of an answer that greedy decoding completes, forget", "https://arxiv.org/abs/2012.07805",
           lambda c: metrics.extraction_strength(c.of("forget"))),
    *membership_metrics(with_reference=True),
    Metric("privleak", "Min-K AUC relative to the reference's; 0 is best", "https://arxiv.org/abs/2407.06460",
           lambda c: metrics.privleak(c.results, c.reference)),
    Metric("memorization_score", "harmonic mean of 1 - memorisation metrics", OPEN_UNLEARNING_URL,
           lambda c: metrics.memorisation_score(c.results)),
    Metric("privacy_score", "harmonic mean of 1 - |AUC - AUC of the reference|", OPEN_UNLEARNING_URL,
           lambda c: metrics.privacy_score(c.results, c.known("reference"))),
    Metric("utility_score", "model utility relative to that before unlearning", OPEN_UNLEARNING_URL,
           lambda c: metrics.utility_score(c.results, c.target)),
    Metric("aggregate_score", "harmonic mean of memorisation, privacy and utility score", OPEN_UNLEARNING_URL,
           lambda c: metrics.aggregate_score(c.results, c.known("reference"), c.target)),
    *sampling_metrics("forget"),
    *leakage_metrics(),
    Metric("forget_best_of_n_ROUGE", "highest ROUGE-L recall among sampled answers, forget", "https://arxiv.org/abs/2602.10217",
           lambda c: metrics.best_of_n_rouge(c.of("forget"))),
    *sampling_metrics("retain"),
)  # fmt: skip


SUITE = Suite(
    name="tofu",
    description="200 fictitious authors, of which 1, 5 or 10 % are to be forgotten; with memorisation and membership",
    source=TOFU_URL,
    config=TofuConfig,
    load=load_tofu,
    splits=SPLITS,
    plan=PLAN,
    metrics=METRICS,
)
TofuRun = SuiteRun
evaluate = SUITE.evaluate


def run_tofu(model: Any, tokenizer: Any, data: Mapping[str, Sequence[Item]], output_dir: Path, **options: Any) -> SuiteRun:
    """Measure a model on TOFU and write the run folder; arguments and errors as of `run_suite`."""
    return run_suite(SUITE, model, tokenizer, data, output_dir, **options)
