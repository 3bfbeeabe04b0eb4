"""What an adapter changed, on records: likelihood and greedy recall of their answers, and the answers themselves."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tempertilt.config.options import Options, option
from tempertilt.data.batches import pad_batch, plan_batches, spread
from tempertilt.data.examples import Example, ExampleConfig, encode_prompt
from tempertilt.data.facts import facts_of, given_away
from tempertilt.data.records import Record
from tempertilt.fitting.hearing import Heard, heard_of_others, heard_variants
from tempertilt.models.frozen import switched_off
from tempertilt.models.generation import generate_ids
from tempertilt.models.limits import room
from tempertilt.models.t3 import T3ForCausalLM

log = logging.getLogger("tempertilt")


@dataclass(frozen=True)
class ReportConfig(Options):
    """How much of the change is measured and shown."""

    report_records: int = option(32, "records of each set whose likelihood and recall are measured; 0 = none", ge=0)
    show: int = option(3, "records of each set whose greedy answers are shown; 0 = none", ge=0)
    answer_records: int = option(12, "forget records whose greedy answers are searched for their facts; 0 = none", ge=0)
    hearing_records: int = option(12, "forget records whose prompts are asked in other spellings and settings; 0 = none", ge=0)
    max_new_tokens: int = option(80, "length of an answer, tokens", ge=1)


NO_REPORT = ReportConfig(report_records=0, show=0, answer_records=0, hearing_records=0)
"""Nothing is measured, nothing is shown."""


class Likelihood(NamedTuple):
    """One example under the base and under the unlearned model.

    `*_log_prob` is the mean log-probability of its scored tokens (nats a token, float32 arithmetic). `*_recalled`: every
    scored token is the most likely one, so greedy decoding gives the answer word for word. `n_scored` tokens were scored.
    """

    base_log_prob: float
    unlearned_log_prob: float
    base_recalled: bool
    unlearned_recalled: bool
    n_scored: int


@dataclass(frozen=True)
class Summary:
    """Means over records. `probability` is the mean of exp(mean log-probability of the answer's tokens)."""

    n: int
    base_probability: float
    unlearned_probability: float
    base_recalled: int
    unlearned_recalled: int

    @classmethod
    def of(cls, likelihoods: Sequence[Likelihood]) -> Summary:
        """The summary of some likelihoods; NaN where there are none."""
        n = len(likelihoods)

        def probability(log_probs: list[float]) -> float:
            return sum(map(math.exp, log_probs)) / n if n else math.nan

        return cls(
            n,
            probability([item.base_log_prob for item in likelihoods]),
            probability([item.unlearned_log_prob for item in likelihoods]),
            sum(item.base_recalled for item in likelihoods),
            sum(item.unlearned_recalled for item in likelihoods),
        )


@torch.inference_mode()
def likelihoods(model: T3ForCausalLM, examples: Sequence[Example], batch_tokens: int = 1024) -> list[Likelihood]:
    """The likelihood of every example's scored tokens before and after, from one pass of the base model, in their order."""
    out: dict[int, Likelihood] = {}
    for batch in plan_batches(examples, batch_tokens):
        chosen = [examples[i] for i in batch]
        padded = pad_batch(chosen, model.device)
        pair = model.paired_logits(padded.input_ids, padded.attention_mask, padded.predicting)
        base, unlearned = (_score(logits, padded.input_ids[padded.targets]) for logits in pair)
        lengths = [example.n_scored for example in chosen]
        parts = zip(batch, lengths, *(column.split(lengths) for column in (*base, *unlearned)))
        for i, n, base_lp, base_hit, lp, hit in parts:
            out[i] = Likelihood(float(base_lp.mean()), float(lp.mean()), bool(base_hit.all()), bool(hit.all()), n)
    return [out[i] for i in range(len(examples))]


def _score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities `(N,)` of the targets, and whether each is the most likely token `(N,)`."""
    logits = logits.float()
    log_probs = logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
    return log_probs, logits.argmax(-1) == targets


def greedy_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    base: bool = False,
    on_batch: Callable[[int], object] = lambda _done: None,
) -> list[str]:
    """Greedy continuations of prompts given as token ids, as text without special tokens, in their order.

    Args:
        model: a `T3ForCausalLM` or any causal LM of transformers.
        base: with a `T3ForCausalLM`: the base model's answers, the adapter switched off.
        on_batch: is told how many prompts each finished batch had.
    """
    lengths: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    ids = greedy_token_ids(model, tokenizer, prompts, **lengths, base=base, on_batch=on_batch)
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]


def greedy_token_ids(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    base: bool = False,
    as_decoded: bool = False,
    on_batch: Callable[[int], object] = lambda _done: None,
) -> list[list[int]]:
    """Token ids of greedy continuations, cut after the first end-of-sequence token, in the order of `prompts`.

    Prompts are batched by length. `as_decoded` is of `tempertilt.models.generation.generate`. `on_batch` is told
    how many prompts each finished batch had.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    out: dict[int, list[int]] = {}
    with switched_off(model) if base else nullcontext():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            some = [prompts[i] for i in batch]
            rows = generate_ids(model, tokenizer, some, max_new_tokens=max_new_tokens, as_decoded=as_decoded)
            out.update((i, row[0]) for i, row in zip(batch, rows))
            on_batch(len(batch))
    return [out[i] for i in range(len(prompts))]


@dataclass(frozen=True)
class Shown:
    """A record's greedy answers before and after."""

    set: str
    source: str
    question: str
    truth: str
    before: str
    after: str


class Leak(NamedTuple):
    """A forget record whose answer still gives facts away: number from 1, place, question, and the facts as written there."""

    record: int
    source: str
    question: str
    facts: tuple[str, ...]


class Facts(NamedTuple):
    """Facts of some forget records in greedy answers.

    Attributes:
        records, facts: how many were looked at.
        before, after: facts that the base gives away, and that the unlearned model does.
        gone: facts that the base alone gives away.
        leaks: where the unlearned model does.
    """

    records: int
    facts: int
    before: int
    after: int
    gone: int
    leaks: list[Leak]


class BeforeAfter(NamedTuple):
    """What has changed: likelihoods of some records of each set, some answers, facts in them, and what the gate hears.

    `of_others` is what it hears of the forget prompts when they are about others.
    """

    likelihoods: dict[str, list[Likelihood]]
    shown: list[Shown]
    facts: Facts | None = None
    heard: tuple[Heard, ...] = ()
    of_others: Heard | None = None

    @property
    def summaries(self) -> dict[str, Summary]:
        """Means over the records of each set."""
        return {name: Summary.of(values) for name, values in self.likelihoods.items()}


def compare(
    model: T3ForCausalLM,
    tokenizer: Any,
    records: Mapping[str, Sequence[Record]],
    examples: Mapping[str, Sequence[Example]],
    config: ReportConfig,
    encoding: ExampleConfig,
) -> BeforeAfter:
    """Measure and show some records of each set, the adapter off and on.

    Args:
        records, examples: by the name of the set; the examples are the records' tokens.
        encoding: how the records became tokens.
    """
    chosen = {name: spread(found, config.report_records) for name, found in examples.items()}
    measured = {name: likelihoods(model, found) for name, found in chosen.items() if found}
    forget = list(records.get("forget", ()))
    numbered = {name: list(enumerate(found, start=1)) for name, found in records.items()}
    asked = spread(numbered["forget"], config.answer_records) if forget else []
    shown = [(name, item) for name, found in numbered.items() for item in spread(found, config.show)]
    answers = paired_answers(model, tokenizer, [*(("forget", item) for item in asked), *shown], config, encoding)
    pairs = {number: answers[("forget", number)] for number, _ in asked if ("forget", number) in answers}
    return BeforeAfter(
        measured,
        [
            Shown(name, record.source, record.question, record.answer, *answers[(name, number)])
            for name, (number, record) in shown
            if (name, number) in answers
        ],
        count_facts(forget, pairs) if pairs else None,
        tuple(heard_variants(model, tokenizer, forget, encoding, config.hearing_records)),
        heard_of_others(model, tokenizer, forget, records.get("retain", ()), encoding, config.hearing_records),
    )


def count_facts(records: Sequence[Record], answers: Mapping[int, tuple[str, str]]) -> Facts:
    """Facts of records in answers.

    Args:
        records: the forget records.
        answers: before and after, by the number of the record, from 1.
    """
    total = before = after = gone = 0
    leaks = []
    for number, (was, now) in sorted(answers.items()):
        record = records[number - 1]
        facts = facts_of(record)
        known = given_away(facts, was)
        still = given_away(facts, now)
        total, before, after = total + len(facts), before + len(known), after + len(still)
        gone += sum(fact not in still for fact in known)
        if still:
            leaks.append(Leak(number, record.source, record.question, tuple(fact.text for fact in still)))
    return Facts(len(answers), total, before, after, gone, leaks)


def paired_answers(
    model: T3ForCausalLM,
    tokenizer: Any,
    asked: Sequence[tuple[str, tuple[int, Record]]],
    config: ReportConfig,
    encoding: ExampleConfig,
) -> dict[tuple[str, int], tuple[str, str]]:
    """Greedy answers before and after, by the set and number of the record; none where the model has no room for any."""
    distinct = list({(name, number): record for name, (number, record) in asked}.items())
    prompts = [encode_prompt(record, tokenizer, encoding) for _, record in distinct]
    rooms = [room(model, len(prompt)) for prompt in prompts]
    if short := sum(space is not None and space < config.max_new_tokens for space in rooms):
        log.warning("the model's positions end within %d of the %d answers, or before them", short, len(rooms))
    answered = [i for i, prompt in enumerate(prompts) if prompt and rooms[i] != 0]
    before, after = (
        greedy_answers(model, tokenizer, [prompts[i] for i in answered], max_new_tokens=config.max_new_tokens, base=off)
        for off in (True, False)
    )
    return {distinct[i][0]: pair for i, pair in zip(answered, zip(before, after))}
