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
from tempertilt.data.records import Record
from tempertilt.models.frozen import switched_off
from tempertilt.models.generation import generate_ids
from tempertilt.models.limits import room
from tempertilt.models.t3 import T3ForCausalLM

log = logging.getLogger("tempertilt")


@dataclass(frozen=True)
class ReportConfig(Options):
    """How much of the change is measured and shown."""

    report_records: int = option(50, "records of each set whose likelihood and recall are measured; 0 = none", ge=0)
    show: int = option(3, "records of each set whose greedy answers are shown; 0 = none", ge=0)
    max_new_tokens: int = option(128, "length of a shown answer, tokens", ge=1)


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
) -> list[str]:
    """Greedy continuations of prompts given as token ids, as text without special tokens, in their order.

    Args:
        model: a `T3ForCausalLM` or any causal LM of transformers.
        base: with a `T3ForCausalLM`: the base model's answers, the adapter switched off.
    """
    ids = greedy_token_ids(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, base=base)
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]


def greedy_token_ids(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    base: bool = False,
    on_batch: Callable[[int], object] = lambda _done: None,
) -> list[list[int]]:
    """Token ids of greedy continuations, cut after the first end-of-sequence token, in the order of `prompts`.

    Prompts are batched by length. `on_batch` is told how many prompts each finished batch had.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    out: dict[int, list[int]] = {}
    with switched_off(model) if base else nullcontext():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = generate_ids(model, tokenizer, [prompts[i] for i in batch], max_new_tokens=max_new_tokens)
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


class BeforeAfter(NamedTuple):
    """What has changed: likelihoods of some records of each set, and some answers."""

    likelihoods: dict[str, list[Likelihood]]
    shown: list[Shown]

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
    return BeforeAfter(measured, _answers(model, tokenizer, records, config, encoding) if config.show else [])


def _answers(
    model: T3ForCausalLM,
    tokenizer: Any,
    records: Mapping[str, Sequence[Record]],
    config: ReportConfig,
    encoding: ExampleConfig,
) -> list[Shown]:
    chosen = [(name, record) for name, listed in records.items() for record in spread(listed, config.show)]
    prompts = [encode_prompt(record, tokenizer, encoding) for _, record in chosen]
    rooms = [room(model, len(prompt)) for prompt in prompts]
    if short := sum(space is not None and space < config.max_new_tokens for space in rooms):
        log.warning("the model's positions end within %d of the %d answers to be shown, or before them", short, len(rooms))
    answered = [i for i, prompt in enumerate(prompts) if prompt and rooms[i] != 0]
    chosen, prompts = [chosen[i] for i in answered], [prompts[i] for i in answered]
    before, after = (
        greedy_answers(model, tokenizer, prompts, max_new_tokens=config.max_new_tokens, base=off) for off in (True, False)
    )
    return [
        Shown(name, record.source, record.question, record.answer, was, now)
        for (name, record), was, now in zip(chosen, before, after)
    ]
