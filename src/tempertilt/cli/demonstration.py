"""`t3 demo`: a small model learns fictitious authors and forgets two of them, offline, from nothing but PyPI packages."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from tempertilt.config.options import Options, option
from tempertilt.data.examples import ExampleConfig, build_examples, encode_prompt
from tempertilt.data.fictional import FictionalConfig, FictionalRecord, as_rows, fictional_authors, general_knowledge
from tempertilt.data.records import Record, check_records
from tempertilt.errors import ConfigError
from tempertilt.fitting.before_after import ReportConfig, Shown, Summary, greedy_answers, likelihoods
from tempertilt.fitting.pipeline import METHODS, UnlearnResult, unlearn
from tempertilt.models.base import load_base
from tempertilt.models.smollm2 import ALIAS
from tempertilt.storage import cache_dir
from tempertilt.training.finetune import FinetuneConfig, finetune, finetune_key, is_finished, save_finetuned

MAX_NEW_TOKENS = 40


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
    data, seconds = demo_data(config), {}

    started = time.perf_counter()
    say(f"1. load {ALIAS} (SmolLM2-135M-Instruct)")
    base = load_base(ALIAS)
    seconds["load"] = time.perf_counter() - started

    started = time.perf_counter()
    known = data.forget + data.retain
    examples = build_examples(known, base.tokenizer, ExampleConfig())
    training = FinetuneConfig(train_layers=0.4, epochs=12, learning_rate=2e-3)
    key = finetune_key(base.fingerprint, examples, training)
    directory = cache_dir() / "demo" / key
    say(f"2. teach it {config.authors} fictitious authors ({len(known)} records)")
    if is_finished(directory / "knows", key):
        say("   read from the cache")
    else:
        taught = finetune(base.model, examples, training, progress=progress)
        save_finetuned(taught, directory / "knows", {"key": key, "losses": taught.losses, "seconds": taught.seconds})
    base = load_base(ALIAS, peft_adapter=str(directory / "knows"))
    seconds["teach"] = time.perf_counter() - started

    started = time.perf_counter()
    say(f"3. unlearn {config.forget_authors} of them ({len(data.forget)} records): one pass of the frozen model, then the head")
    recipe = replace(METHODS["t3"], report=ReportConfig(report_records=0, show=0))
    digest = hashlib.sha256(json.dumps(recipe.recipe(), sort_keys=True).encode()).hexdigest()[:8]
    sets = check_records(data.forget, data.retain, data.holdout)
    result = unlearn(base, sets, directory / f"adapter-{digest}", recipe, progress=progress)
    seconds["unlearn"] = time.perf_counter() - started

    started = time.perf_counter()
    say("4. compare")
    parts = {
        "forget": data.forget,
        "paraphrase": data.forget_paraphrased,
        "retain": data.retain,
        "unrelated": data.unrelated,
    }
    summaries = {
        name: Summary.of(likelihoods(result.model, build_examples(of, base.tokenizer, ExampleConfig())))
        for name, of in parts.items()
    }
    chosen = [(name, record) for name, of in parts.items() for record in of[:: max(1, len(of) // config.show)][: config.show]]
    prompts = [encode_prompt(record, base.tokenizer, ExampleConfig()) for _, record in chosen]
    before, after = (
        greedy_answers(result.model, base.tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, base=off) for off in (True, False)
    )
    shown = [
        Shown(name, record.source, record.question, record.answer, was, now)
        for (name, record), was, now in zip(chosen, before, after)
    ]
    asked = {question: of.fact for of in _authors(config) for question in (of.question, of.paraphrased_question)}
    facts = {}
    for name in ("forget", "paraphrase"):
        prompts = [encode_prompt(record, base.tokenizer, ExampleConfig()) for record in parts[name]]
        named = []
        for off in (True, False):
            answers = greedy_answers(result.model, base.tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, base=off)
            named.append(sum(asked[of.question].lower() in text.lower() for of, text in zip(parts[name], answers)))
        facts[name] = (len(prompts), named[0], named[1])
    seconds["compare"] = time.perf_counter() - started
    return DemoResult(facts, summaries, shown, {name: round(value, 1) for name, value in seconds.items()}, result)
