"""What an adapter changed, on records: likelihood and greedy recall of their answers, and the answers themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tempertilt.data.examples import Example
from tempertilt.fitting.features import pad_batch, plan_batches
from tempertilt.models.generation import generate_ids
from tempertilt.models.t3 import T3ForCausalLM

Item = TypeVar("Item")


class Likelihood(NamedTuple):
    """One example under the base and under the unlearned model.

    `*_log_prob` is the mean log-probability of its scored tokens (nats a token, float32 arithmetic). `*_recalled`: every
    scored token is the most likely one, so greedy decoding gives the answer word for word.
    """

    base_log_prob: float
    unlearned_log_prob: float
    base_recalled: bool
    unlearned_recalled: bool


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


def spread(items: Sequence[Item], n: int) -> list[Item]:
    """`n` items at even distances, or all of them if there are fewer."""
    if n >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]


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
        parts = zip(batch, *(column.split(lengths) for column in (*base, *unlearned)))
        for i, base_lp, base_hit, lp, hit in parts:
            out[i] = Likelihood(float(base_lp.mean()), float(lp.mean()), bool(base_hit.all()), bool(hit.all()))
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
    off = model.disable() if base and isinstance(model, T3ForCausalLM) else nullcontext()
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    out: dict[int, list[int]] = {}
    with off:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = generate_ids(model, tokenizer, [prompts[i] for i in batch], max_new_tokens=max_new_tokens)
            out.update((i, row[0]) for i, row in zip(batch, rows))
            on_batch(len(batch))
    return [out[i] for i in range(len(prompts))]
