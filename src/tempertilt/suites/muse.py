"""MUSE (Shi et al., arXiv 2407.06460): articles to forget; verbatim and knowledge memorisation, membership, utility.

Its protocol: plain prompts, greedy decoding, ROUGE-L F1 without stemming. Verbatim: 128 tokens after the beginning of an article.
Knowledge: 32 tokens after ten questions with their answers and one more question. Membership: Min-K of whole articles, k = 40 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tempertilt import metrics
from tempertilt.data.records import load_rows
from tempertilt.errors import DataError
from tempertilt.suites.families import gate_open, membership_metrics, unchanged
from tempertilt.suites.items import Item, Plan
from tempertilt.suites.suite import Data, Metric, Suite, SuiteConfig, local_directory, text_of

URL = "https://arxiv.org/abs/2407.06460"
HUB_ID = "muse-bench/MUSE-News"
TEXTS, QUESTIONS = ("forget", "holdout"), ("forget_qa", "retain_qa")
ENDS = ("\n\n", "\nQuestion", "Question:")
"""Before which an answer to a question is cut off."""


def load_muse(source: str | Path | None, config: SuiteConfig) -> Data:
    """Articles, their beginnings, and questions.

    Args:
        source: a data set on the hub, None for MUSE-News, or a directory laid out as it: knowmem/, privleak/ and verbmem/ with
            a .jsonl, .json or .parquet file for each split.

    Raises:
        DataError: a split is missing, or a row is not one of MUSE's.
    """
    directory = local_directory(source, "MUSE's")

    def rows(folder: str, split: str, limit: int | None = config.limit) -> list[tuple[str, Mapping[str, object]]]:
        where = f"{source or HUB_ID}:{folder}:{split}" if directory is None else _file(directory / folder, split)
        return load_rows(where, limit=limit)

    texts = {split: [_article(where, row) for where, row in rows("privleak", split)] for split in TEXTS}
    beginnings = [_beginning(where, row) for where, row in rows("verbmem", "forget")]
    questions = {}
    for split in QUESTIONS:
        shots = "".join(f"{_prompt(where, row)}{_answer(where, row)}\n\n" for where, row in rows("knowmem", f"{split}_icl", None))
        questions[split] = [
            Item(shots + _prompt(where, row), _answer(where, row), None, (), where, kind="completion")
            for where, row in rows("knowmem", split)
        ]
    return {**texts, "verbatim": beginnings, **questions}


def _file(folder: Path, split: str) -> Path:
    """The file of a split: of its name, or the only part of it that the hub has."""
    names = [folder / f"{split}{suffix}" for suffix in (".jsonl", ".json", ".parquet")]
    path = next((path for path in (*names, *folder.glob(f"{split}-00000-of-00001.parquet")) if path.is_file()), None)
    if path is None:
        raise DataError(f"{str(folder)!r} has no file of the split {split}; must have {split}.jsonl, .json or .parquet")
    return path


def _article(where: str, row: Mapping[str, object]) -> Item:
    return Item("", text_of(row, "text", where, "MUSE"), None, (), where, kind="text")


def _beginning(where: str, row: Mapping[str, object]) -> Item:
    prompt, rest = (text_of(row, name, where, "MUSE") for name in ("prompt", "gt"))
    return Item(prompt, rest, None, (), where, kind="completion")


def _prompt(where: str, row: Mapping[str, object]) -> str:
    return f"Question: {text_of(row, 'question', where, 'MUSE')}\nAnswer: "


def _answer(where: str, row: Mapping[str, object]) -> str:
    return text_of(row, "answer", where, "MUSE")


def _rouge(name: str, split: str, description: str, higher: bool, ends: tuple[str, ...] = ()) -> Metric:
    return Metric(name, description, URL,
                  lambda c: metrics.plain_rouge_f1(c.of(split), ends=ends, name=name, higher_is_better=higher))  # fmt: skip


SUITE = Suite(
    name="muse",
    description="MUSE-News: articles to forget; verbatim and knowledge memorisation, privacy leakage, utility",
    source=URL,
    config=SuiteConfig,
    load=load_muse,
    splits=(*TEXTS, "verbatim", *QUESTIONS),
    plan=Plan(
        generated=("verbatim", *QUESTIONS),
        token_level=TEXTS,
        drawn=(),
        unended=("verbatim",),
        gated=("verbatim", *QUESTIONS),
        lengths=(("verbatim", 128), ("forget_qa", 32), ("retain_qa", 32)),
        cut=("verbatim",),
    ),
    metrics=(
        _rouge("forget_verbmem_ROUGE", "verbatim", "ROUGE-L F1 of the articles' continuations, forget", False),
        _rouge("forget_knowmem_ROUGE", "forget_qa", "ROUGE-L F1 of answers to questions about forget articles", False, ENDS),
        _rouge("retain_knowmem_ROUGE", "retain_qa", "utility: ROUGE-L F1 of answers about retain articles", True, ENDS),
        Metric("privleak", "Min-K AUC of articles relative to the reference's; 0 is best", URL,
               lambda c: metrics.privleak(c.results, c.reference)),
        *membership_metrics(),
        Metric("extraction_strength", "share of an article that greedy decoding completes, forget",
               "https://arxiv.org/abs/2012.07805", lambda c: metrics.extraction_strength(c.of("forget"))),
        gate_open("verbatim", "beginnings of forget articles", True),
        gate_open("forget_qa", "questions about forget articles", True),
        gate_open("retain_qa", "questions about retain articles", False),
        unchanged("retain", "retain_qa", "questions about retain articles"),
    ),
    examples={"max_length": 4096},
)  # fmt: skip
