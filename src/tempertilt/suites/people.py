"""Real people that a model knows from its pretraining: those to forget and their neighbours, who stay (arXiv 2410.08109).

Nobody has a model that never saw them, so there is no reference and no holdout: what counts is which facts still come out, of
those that came out before, and what else changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tempertilt import metrics
from tempertilt.data.records import load_rows
from tempertilt.errors import DataError
from tempertilt.suites.families import OWN, answer_metrics, gate_open, leakage_metrics, sampling_metrics, unchanged
from tempertilt.suites.items import Item, Plan
from tempertilt.suites.suite import Data, Metric, Suite, SuiteConfig, local_directory, text_of

URL = "https://arxiv.org/abs/2410.08109"
FILES = {"forget": "forget_perturbed.jsonl", "retain": "neighbor_perturbed.jsonl"}
SPLITS = tuple(FILES)


def load_people(source: str | Path | None, config: SuiteConfig) -> Data:
    """The questions about the people to forget, and about their neighbours (split retain).

    Args:
        source: a directory with forget_perturbed.jsonl and neighbor_perturbed.jsonl, as in sail-sg/closer-look-LLM-unlearning:
            rows with name, question, golden_answer (or answer), paraphrased_answer, perturbed_answer.

    Raises:
        DataError: a file is missing, or a row is not of this form.
    """
    directory = local_directory(source, "the people's .jsonl")
    if directory is None or not all((directory / name).is_file() for name in FILES.values()):
        raise DataError(f"the suite people needs --data-dir with {' and '.join(FILES.values())}; the hub has none")
    return {
        split: [_item(where, row) for where, row in load_rows(directory / name, limit=config.limit)]
        for split, name in FILES.items()
    }


def _item(where: str, row: Mapping[str, object]) -> Item:
    answer = "golden_answer" if "golden_answer" in row else "answer"
    name, question, truth, paraphrase = (
        text_of(row, field, where, "people") for field in ("name", "question", answer, "paraphrased_answer")
    )
    wrong = row.get("perturbed_answer")
    if not isinstance(wrong, list) or not wrong or not all(isinstance(text, str) and text.strip() for text in wrong):
        raise DataError(f"{where}: not a row of people; must have a list of texts 'perturbed_answer', none of them empty")
    return Item(question, truth, paraphrase, tuple(wrong), where, group=name)


def _known(split: str, whose: str, higher: bool) -> list[Metric]:
    """What was known before, and of that what still is; the results before unlearning are the target's."""
    return [
        Metric(f"{split}_known", f"share of questions about {whose} that the model before knew: greedy answers with a fact", OWN,
               lambda c: metrics.known(c.before(split))),
        Metric(f"{split}_still_known", f"of these the share whose greedy answer still holds a fact, {whose}", OWN,
               lambda c: metrics.still_known(c.of(split), c.before(split), higher_is_better=higher)),
        unchanged(split, split, whose, higher or None),
        gate_open(split, whose, not higher),
    ]  # fmt: skip


SUITE = Suite(
    name="people",
    description="real people that a model knows from pretraining, to forget, and neighbours to keep: facts that still come out",
    source=URL,
    config=SuiteConfig,
    load=load_people,
    splits=SPLITS,
    plan=Plan(generated=SPLITS, token_level=SPLITS, drawn=SPLITS, gated=SPLITS),
    metrics=(
        *_known("forget", "people to forget", False),
        *_known("retain", "neighbours", True),
        *leakage_metrics(),
        *answer_metrics("forget", "forget"),
        *answer_metrics("retain", "retain"),
        *sampling_metrics("forget"),
        *sampling_metrics("retain"),
    ),
)
