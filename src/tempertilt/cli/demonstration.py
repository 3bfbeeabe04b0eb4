"""`t3 demo`: a small model learns fictitious authors and forgets two of them, offline, from nothing but PyPI packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tempertilt.config.keys import FIT, key_of
from tempertilt.config.options import Options, option
from tempertilt.data.examples import ExampleConfig, build_examples, encode_prompt
from tempertilt.data.fictional import FictionalConfig, FictionalRecord, as_rows, fictional_authors, general_knowledge
from tempertilt.data.records import Record, check_records
from tempertilt.environment import Clock
from tempertilt.errors import ConfigError
from tempertilt.fitting.before_after import NO_REPORT, Shown, Summary, greedy_answers, likelihoods
from tempertilt.fitting.pipeline import METHODS, UnlearnResult, unlearn
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.packaged import SMOLLM2
from tempertilt.storage import cache_dir
from tempertilt.training.finetune import FinetuneConfig, finetune, finetune_key, is_finished, save_finetuned

MAX_NEW_TOKENS = 40
KNOWS = "knows"


@dataclass(frozen=True)
class DemoConfig(Options):
    """The size of the demonstration; the defaults take about two minutes on two CPU cores."""

    authors: int = option(8, "fictitious authors that the model learns", ge=2)
    forget_authors: int = option(2, "of these, how many it then forgets", ge=1)
    questions: int = option(5, "questions about each author", ge=1)
    show: int = option(2, "answers shown of each kind", ge=1)
    seed: int = option(0, "another seed gives other authors", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.forget_authors >= self.authors:
            raise ConfigError(f"forget_authors is {self.forget_authors}; must be < {self.authors}, the number of authors")


class DemoData(NamedTuple):
    """Records by their part in the demonstration. Nobody's training data have `holdout` (other authors) and `unrelated`."""

    forget: list[Record]
    forget_paraphrased: list[Record]
    retain: list[Record]
    holdout: list[Record]
    unrelated: list[Record]


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found: likelihood and recall by kind of record, answers, seconds of each step.

    `facts`: for forget questions and their paraphrases, how many there are, and in how many greedy answers before and after the
    fact asked for is named, in whatever words.
    """

    facts: dict[str, tuple[int, int, int]]
    summaries: dict[str, Summary]
    shown: list[Shown]
    seconds: dict[str, float]
    unlearning: UnlearnResult


def demo_data(config: DemoConfig) -> DemoData:
    """The demonstration's records: the last authors known are to be forgotten; half of the general knowledge is retained."""
    authors = _authors(config)
    kept, known = (f"author-{number:03d}" for number in (config.authors - config.forget_authors, config.authors))

    def records(rows: list[dict[str, str]], name: str) -> list[Record]:
        return [
            Record.from_question(row["question"], row["answer"], document=row["document"], source=f"{name}:{i + 1}")
            for i, row in enumerate(rows)
        ]

    rows: list[dict[str, str]] = as_rows(authors)  # type: ignore[assignment]
    forget = [row for row in rows if kept <= row["document"] < known]
    paraphrased = [row | {"question": row["paraphrased_question"], "answer": row["paraphrased_answer"]} for row in forget]
    world = general_knowledge()
    return DemoData(
        forget=records(forget, "forget"),
        forget_paraphrased=records(paraphrased, "paraphrased"),
        retain=records([row for row in rows if row["document"] < kept] + world[::2], "retain"),
        holdout=records([row for row in rows if row["document"] >= known], "holdout"),
        unrelated=records(world[1::2], "unrelated"),
    )


def _authors(config: DemoConfig) -> list[FictionalRecord]:
    """Those that the model learns, then those that it never sees."""
    return fictional_authors(FictionalConfig(config.authors + config.forget_authors, config.questions, seed=config.seed))


def run_demo(
    config: DemoConfig | None = None, *, progress: bool = True, say: Callable[[str], None] = lambda _text: None
) -> DemoResult:
    """Make smollm2 know the authors, unlearn some, and measure; what an earlier run made is read from the cache."""
    config = config or DemoConfig()
    data, clock = demo_data(config), Clock()
    with clock("load"):
        say(f"1. load {SMOLLM2} (SmolLM2-135M-Instruct)")
        base = load_base(SMOLLM2)
    with clock("teach"):
        say(f"2. teach it {config.authors} fictitious authors ({len(data.forget + data.retain)} records)")
        directory = _taught(base, data.forget + data.retain, progress, say)
        base = load_base(SMOLLM2, peft_adapter=str(directory / KNOWS))
    with clock("unlearn"):
        say(f"3. unlearn {config.forget_authors} of them ({len(data.forget)} records): one frozen pass, then the head")
        recipe = replace(METHODS["t3"], report=NO_REPORT)
        target = directory / f"adapter-{key_of(*FIT, recipe=recipe.recipe())[:8]}"
        result = unlearn(base, check_records(data.forget, data.retain, data.holdout), target, recipe, progress=progress)
    with clock("compare"):
        say("4. compare")
        summaries, shown = _compare(result.model, base.tokenizer, data, config.show)
        facts = _facts(result.model, base.tokenizer, data, config)
    return DemoResult(facts, summaries, shown, {name: round(seconds, 1) for name, seconds in clock.seconds.items()}, result)


def _taught(base: BaseModel, records: list[Record], progress: bool, say: Callable[[str], None]) -> Path:
    """The folder with a PEFT adapter that knows the records, in its folder `KNOWS`."""
    examples = build_examples(records, base.tokenizer, ExampleConfig())
    training = FinetuneConfig(train_layers=0.4, epochs=12, learning_rate=2e-3)
    key = finetune_key(base.fingerprint, examples, training)
    directory = cache_dir() / "demo" / key
    if is_finished(directory / KNOWS, key):
        say("   read from the cache")
    else:
        taught = finetune(base.model, examples, training, progress=progress)
        about = {"key": key, "records": len(records), "config": asdict(training)}
        report = about | {"losses": taught.losses, "seconds": taught.seconds}
        save_finetuned(taught, directory / KNOWS, report, base)
    return directory


def _compare(model: Any, tokenizer: Any, data: DemoData, show: int) -> tuple[dict[str, Summary], list[Shown]]:
    """Likelihoods of each kind of record, and some answers, before and after."""
    parts = {"forget": data.forget, "paraphrase": data.forget_paraphrased, "retain": data.retain, "unrelated": data.unrelated}
    summaries = {
        name: Summary.of(likelihoods(model, build_examples(records, tokenizer, ExampleConfig())))
        for name, records in parts.items()
    }
    chosen = [(name, record) for name, records in parts.items() for record in records[:: max(1, len(records) // show)][:show]]
    before, after = _answers(model, tokenizer, [record for _, record in chosen])
    return summaries, [
        Shown(name, record.source, record.question, record.answer, was, now)
        for (name, record), was, now in zip(chosen, before, after)
    ]


def _facts(model: Any, tokenizer: Any, data: DemoData, config: DemoConfig) -> dict[str, tuple[int, int, int]]:
    """By kind of question: how many there are, and how many answers name the fact before and after."""
    fact_of = {text: row.fact for row in _authors(config) for text in (row.question, row.paraphrased_question)}
    counts = {}
    for name, records in (("forget", data.forget), ("paraphrase", data.forget_paraphrased)):
        before, after = (
            sum(fact_of[record.question].lower() in text.lower() for record, text in zip(records, answers))
            for answers in _answers(model, tokenizer, records)
        )
        counts[name] = (len(records), before, after)
    return counts


def _answers(model: Any, tokenizer: Any, records: list[Record]) -> tuple[list[str], list[str]]:
    """Greedy answers of the base model and of the unlearned one."""
    prompts = [encode_prompt(record, tokenizer, ExampleConfig()) for record in records]
    before, after = (greedy_answers(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, base=off) for off in (True, False))
    return before, after
