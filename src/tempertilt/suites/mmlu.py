"""MMLU (Hendrycks et al., arXiv 2009.03300; MIT) without examples in the prompt: what an adapter changes far from its records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tempertilt import metrics
from tempertilt.data.batches import spread
from tempertilt.data.records import load_rows
from tempertilt.errors import DataError
from tempertilt.suites.families import OWN, gate_open
from tempertilt.suites.items import Item, Plan
from tempertilt.suites.suite import Data, Metric, PromptConfig, Suite, local_directory, text_of

URL = "https://arxiv.org/abs/2009.03300"
HUB_ID = "cais/mmlu"
LETTERS = "ABCD"
INTRODUCTION = "The following are multiple choice questions (with answers) about {}.\n\n"


def load_mmlu(source: str | Path | None, config: PromptConfig) -> Data:
    """The questions of the test set.

    Args:
        source: a directory with .jsonl files of subject, question, choices (four) and answer (0 to 3); or a data set on the hub
            whose split `test` of `all` has them, None for cais/mmlu.

    Raises:
        DataError: there are no files, or a row is not of this form.
    """
    directory = local_directory(source, "MMLU's .jsonl")
    sources = [f"{source or HUB_ID}:all:test"] if directory is None else sorted(directory.glob("*.jsonl"))
    if not sources:
        raise DataError(f"{str(directory)!r} has no .jsonl file; must be at least one")
    items = [_item(where, row, config) for name in sources for where, row in load_rows(name)]
    return {"mmlu": items if config.limit is None else spread(items, config.limit)}


def _item(where: str, row: Mapping[str, object], config: PromptConfig) -> Item:
    subject, question = (text_of(row, name, where, "MMLU") for name in ("subject", "question"))
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or len(choices) != len(LETTERS) or not isinstance(answer, int) or answer not in range(4):
        raise DataError(f"{where}: not a row of MMLU; must have four 'choices' and the place of the right one, 0 to 3")
    lines = [question, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices)), "Answer:"]
    prompt = INTRODUCTION.format(subject.replace("_", " ")) + "\n".join(lines)
    space = "" if config.kind == "question" else " "
    right, *wrong = (space + letter for letter in sorted(LETTERS, key=lambda letter: letter != LETTERS[answer]))
    return Item(prompt, right, None, tuple(wrong), where, kind=config.kind, group=subject)


SUITE = Suite(
    name="mmlu",
    description="MMLU by the log-likelihood of the letters, no examples in the prompt: side effects on general knowledge",
    source=URL,
    config=PromptConfig,
    load=load_mmlu,
    splits=("mmlu",),
    plan=Plan(generated=(), token_level=(), drawn=(), unended=("mmlu",), gated=("mmlu",)),
    metrics=(
        Metric("mmlu_accuracy", "share of questions whose right letter is the likeliest of four", URL,
               lambda c: metrics.choice_accuracy(c.of("mmlu"))),
        Metric("mmlu_changed", "share of questions with another letter than before unlearning", OWN,
               lambda c: metrics.choice_changed(c.of("mmlu"), c.before("mmlu"))),
        gate_open("mmlu", "multiple choice", False),
    ),
)  # fmt: skip
