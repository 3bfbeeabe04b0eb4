"""Likelihood of answers under any causal LM. What sequences have in common runs once; logits only where answers are predicted.

Questions whose prompts have the same length go together. Their sequences are cut at a few places; in each part, every distinct
prefix is one row, continued from the cached state of the part before. So the system prompt runs once for all questions, a
prompt once for all its answers, and the common beginnings of answers once as well. Rows are padded at their ends alone, where
nothing depends on it: no mask, no shifted positions.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, LinearAttentionCacheLayerMixin

from tempertilt.errors import ConfigError, ModelError
from tempertilt.models.base import is_out_of_memory

log = logging.getLogger("tempertilt")

PASSES = 8
"""A batch of questions holds so many times the tokens of one forward pass: the state of prompts is small."""

CUTS = (2, 4, 6, 8, 10, 12, 15, 18, 22, 27, 33)
"""Where answers may be cut, in tokens from their start."""

PASS_COST = 24
"""What one more forward pass costs, in tokens."""

LOGIT_ROWS = 64
"""Positions whose whole next-token distribution is held in float32 at a time."""

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """A prompt and the answers to score, as token ids; every answer has at least one token.

    Attributes:
        prompt, answers: token ids.
        n_standardised: the first so many answers also get `AnswerScore.standardised`.
    """

    prompt: Ids
    answers: tuple[Ids, ...]
    n_standardised: int = 0

    def __post_init__(self) -> None:
        if not self.prompt or not self.answers or not all(self.answers):
            raise ConfigError("a question to score needs a prompt token and answers of at least one token each")


class AnswerScore(NamedTuple):
    """One answer of n tokens under a model.

    Attributes:
        log_probs: `(n,)` float32, nats.
        hits: `(n,)` bool, whether each token is the most likely one given the true tokens before it.
        standardised: `(n,)` float32, (log p - mean) / standard deviation of log p under the model's
            distribution at that position; empty where it was not asked for.
    """

    log_probs: NDArray[np.float32]
    hits: NDArray[np.bool_]
    standardised: NDArray[np.float32]

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, nats a token."""
        return -float(self.log_probs.mean(dtype=np.float64))


def plan_questions(questions: Sequence[Question], batch_tokens: int) -> list[list[int]]:
    """Batches of questions whose prompts have the same length, longest first.

    Args:
        batch_tokens: upper bound of a batch's prompt and answer tokens; a question that is larger goes alone.
    """
    order = sorted(range(len(questions)), key=lambda i: (-len(questions[i].prompt), -max(map(len, questions[i].answers))))
    batches: list[list[int]] = []
    length = tokens = 0
    for i in order:
        size = len(questions[i].prompt) + sum(map(len, questions[i].answers))
        if not batches or len(questions[i].prompt) != length or tokens + size > batch_tokens:
            batches.append([])
            length, tokens = len(questions[i].prompt), 0
        batches[-1].append(i)
        tokens += size
    return batches


def common_prefix(questions: Sequence[Question]) -> Ids:
    """The tokens with which all prompts begin, at least one less than the shortest prompt has."""
    first, last = min(q.prompt for q in questions), max(q.prompt for q in questions)
    length = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), len(first))
    return first[: min(length, min(len(q.prompt) for q in questions) - 1)]


class Scorer:
    """Scores answers under `model`, a `T3ForCausalLM` or any object with the forward of a transformers causal LM.

    Args:
        model: in eval mode.
        batch_tokens: positions in one forward pass, padding included; halved whenever memory runs out.
        prefix: tokens with which all prompts to come begin, run once; by default found anew in each call of `score`.
        hidden_token_id: a token inside the sequences that attention shall not see. None as it should be; open-unlearning's
            published figures hide its pad token, which in some chat templates is a token of the text.
    """

    def __init__(
        self, model: Any, batch_tokens: int = 1024, *, prefix: Ids | None = None, hidden_token_id: int | None = None
    ) -> None:
        if batch_tokens < 1:
            raise ConfigError(f"batch_tokens is {batch_tokens}; must be a whole number >= 1")
        self.model = model
        self.batch_tokens = batch_tokens
        self.prefix = prefix
        self.hidden_token_id = hidden_token_id
        supported = getattr(model, "_supports_logits_to_keep", None)
        self.keeps = bool(supported()) if supported is not None else False
        self._start: tuple[Ids, Any] = ((), None)

    def plan(self, questions: Sequence[Question]) -> list[list[int]]:
        """The batches in which `score` takes questions, as positions."""
        return plan_questions(questions, PASSES * self.batch_tokens)

    @torch.inference_mode()
    def score(self, questions: Sequence[Question]) -> list[list[AnswerScore]]:
        """Scores of each question's answers."""
        prefix = common_prefix(questions) if self.prefix is None else self.prefix
        out: list[list[AnswerScore]] = [[] for _ in questions]
        for batch in self.plan(questions):
            for i, scores in zip(batch, self._until_it_fits([questions[i] for i in batch], prefix)):
                out[i] = scores
        return out

    def _until_it_fits(self, questions: list[Question], prefix: Ids) -> list[list[AnswerScore]]:
        while True:
            try:
                return self._score_batch(questions, prefix)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                longest = max(len(q.prompt) + max(map(len, q.answers)) for q in questions)
                if self.batch_tokens == 1 and len(questions) == 1:
                    raise ModelError(f"no memory left for one sequence of {longest} tokens: {error}") from error
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.batch_tokens = max(1, self.batch_tokens // 2)
            log.warning("memory ran out: passes of %d tokens from here on", self.batch_tokens)
            if len(questions) > 1:
                middle = len(questions) // 2
                return self._until_it_fits(questions[:middle], prefix) + self._until_it_fits(questions[middle:], prefix)

    def _score_batch(self, questions: list[Question], prefix: Ids) -> list[list[AnswerScore]]:
        """Questions whose prompts have the same length."""
        start = len(questions[0].prompt)
        rows = [
            _Row(question.prompt + answer, start, a < question.n_standardised)
            for question in questions
            for a, answer in enumerate(question.answers)
        ]
        shared = prefix if all(q.prompt[: len(prefix)] == prefix for q in questions) and len(prefix) < start else ()
        cache = self._run_prefix(shared or questions[0].prompt[:1])
        if cache is None:
            self._score_unshared(rows)
        else:
            self._score_shared(rows, cache if shared else None, len(shared), start)
        scores = iter(rows)
        return [[next(scores).score() for _ in question.answers] for question in questions]

    def _run_prefix(self, prefix: Ids) -> Cache | None:
        """The state after `prefix`, kept from call to call; None if the model's state can't be shared among rows."""
        if self._start[0] != prefix:
            ids = torch.tensor([prefix], device=self.model.device)
            cache = getattr(self._forward(ids, None, [prefix]), "cache", None)
            shareable = isinstance(cache, Cache) and not any(
                isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers
            )  # state-space layers can't go on by several tokens
            self._start = (prefix, cache if shareable else None)
        return self._start[1]  # type: ignore[no-any-return]

    def _score_shared(self, rows: list[_Row], cache: Cache | None, done: int, start: int) -> None:
        """Score sequences whose first `done` tokens are in `cache` (one row), part by part."""
        ends = [start, *(start + cut for cut in _best_cuts([row.ids[start:-1] for row in rows], self.batch_tokens))]
        parents = {row.ids[:done]: 0 for row in rows}
        for end in [*ends, None]:
            alive = [row for row in rows if len(row.ids) - 1 > done]
            nodes: dict[Ids, list[_Row]] = {}
            for row in alive:
                nodes.setdefault(row.ids[:-1][:end], []).append(row)
            order = sorted(nodes, key=lambda ids: -len(ids))
            steps = _split([len(ids) - done for ids in order], self.batch_tokens)[1] if end is None else [len(order)]
            for chunk in _take(order, steps if order else []):
                owners = [parents[ids[:done]] for ids in chunk]
                after = self._continue(cache, owners, chunk, done, [nodes[ids] for ids in chunk])
            if end is None or not order:
                return
            cache, done, parents = after, end, {ids: i for i, ids in enumerate(order)}

    def _continue(self, cache: Cache | None, owners: list[int], chunk: list[Ids], done: int, rows: list[list[_Row]]) -> Cache:
        """Run the tokens of `chunk` after its first `done`, each from row `owners[i]` of the cache; fill in its rows' scores."""
        width = max(map(len, chunk)) - done
        padded = [ids[done:] + (0,) * (width + done - len(ids)) for ids in chunk]
        inputs = torch.tensor(padded, device=self.model.device)
        branch = None if cache is None else _branch(cache, torch.tensor(owners, device=self.model.device))
        keep = np.zeros(inputs.shape, dtype=bool)
        for i, ids in enumerate(chunk):
            keep[i, max(0, rows[i][0].start - 1 - done) : len(ids) - done] = True
        kept = torch.from_numpy(keep).to(self.model.device)
        output = self._forward(inputs, branch, chunk, kept if self.keeps and keep.any() else None)
        if keep.any():
            logits = output.logits if self.keeps else output.logits[kept]
            self._fill(logits, keep, done, rows)
        return output.cache  # type: ignore[no-any-return]

    def _fill(self, logits: Tensor, keep: NDArray[np.bool_], done: int, rows: list[list[_Row]]) -> None:
        """Score the tokens that the kept positions predict; several rows may go on from one position."""
        number = np.cumsum(keep).reshape(keep.shape) - 1
        where, targets, wide, parts = [], [], [], []
        for i, node in enumerate(rows):
            positions = np.flatnonzero(keep[i])
            for row in node:
                where.append(number[i, positions])
                targets.append(np.asarray(row.ids)[positions + done + 1])
                wide.append(np.full(len(positions), row.standardise))
                parts.append((row, positions + done + 1 - row.start))
        distribution = _distribution(logits, np.concatenate(where), np.concatenate(targets), np.concatenate(wide))
        splits = np.cumsum([len(part) for part in where])[:-1]
        for (row, at), *values in zip(parts, *(np.split(field, splits) for field in distribution)):
            for field, value in zip((row.log_probs, row.hits, row.standardised), values):
                field[at] = value

    def _score_unshared(self, rows: list[_Row]) -> None:
        """Score whole sequences, those of one length together."""
        by_length: dict[int, list[_Row]] = {}
        for row in rows:
            by_length.setdefault(len(row.ids), []).append(row)
        for length, group in by_length.items():
            step = max(1, self.batch_tokens // length)
            for chunk in (group[i : i + step] for i in range(0, len(group), step)):
                ids = torch.tensor([row.ids[:-1] for row in chunk], device=self.model.device)
                keep = np.zeros(ids.shape, dtype=bool)
                keep[:, chunk[0].start - 1 :] = True
                logits = self._forward(ids, None, [row.ids[:-1] for row in chunk], use_cache=False).logits
                self._fill(logits[torch.from_numpy(keep).to(logits.device)], keep, 0, [[row] for row in chunk])

    def _forward(
        self,
        inputs: Tensor,
        cache: Cache | None,
        sequences: Sequence[Ids],
        keep: Tensor | None = None,
        use_cache: bool = True,
    ) -> Any:
        """One pass over `inputs`, the ends of `sequences` (padded) of which the cache holds the beginnings."""
        total = inputs.shape[1] if cache is None else max(map(len, sequences))
        mask = torch.ones((len(sequences), total), dtype=torch.long, device=inputs.device)
        if self.hidden_token_id is not None:
            for i, ids in enumerate(sequences):
                for j, token in enumerate(ids):
                    mask[i, j] = token != self.hidden_token_id
        options: dict[str, Any] = {"use_cache": use_cache}
        if cache is not None:
            options["cache"] = cache
        if self.keeps and use_cache:
            options["logits_to_keep"] = 1 if keep is None else keep
        return self.model(input_ids=inputs, attention_mask=mask, **options)


class _Row:
    """One answer in the making: `ids` = prompt and answer, of which `ids[start:]` are scored."""

    def __init__(self, ids: Ids, start: int, standardise: bool) -> None:
        self.ids, self.start, self.standardise = ids, start, standardise
        n = len(ids) - start
        self.log_probs = np.full(n, np.nan, np.float32)
        self.hits = np.zeros(n, np.bool_)
        self.standardised = np.full(n, np.nan, np.float32)

    def score(self) -> AnswerScore:
        """What was filled in."""
        standardised = self.standardised if self.standardise else self.standardised[:0]
        return AnswerScore(self.log_probs, self.hits, standardised)


def _branch(cache: Cache, rows: Tensor) -> Cache:
    """A cache of its own that holds `rows` of `cache`. The tensors of the old one are not written to."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    branch.reorder_cache(rows)
    return branch


def _take(order: list[Ids], steps: Sequence[int]) -> Iterator[list[Ids]]:
    """The sequences in portions of the given sizes."""
    rest = iter(order)
    for step in steps:
        yield [next(rest) for _ in range(step)]


def _split(lengths: Sequence[int], limit: int) -> tuple[int, list[int]]:
    """Cut rows of falling length into passes so that padding and the number of passes cost least.

    Args:
        lengths: tokens of each row.
        limit: positions that a pass may have, padding included; a longer row goes alone.

    Returns:
        The cost in positions, and how many rows each pass has.
    """
    costs, sizes = [0.0], [0]
    for stop in range(1, len(lengths) + 1):
        best = (math.inf, 0)
        for start in range(stop - 1, -1, -1):
            size = lengths[start] * (stop - start)
            if size > limit and start < stop - 1:
                break
            best = min(best, (costs[start] + size + PASS_COST, stop - start))
        costs.append(best[0])
        sizes.append(best[1])
    steps, stop = [], len(lengths)
    while stop:
        steps.append(sizes[stop])
        stop -= sizes[stop]
    return int(costs[-1]), steps[::-1]


def _best_cuts(answers: list[Ids], limit: int) -> tuple[int, ...]:
    """Up to two places to cut answers at, so that the fewest positions are run."""

    def cost(cuts: tuple[int, ...]) -> float:
        total, done = 0.0, 0
        for end in (*cuts, None):
            lengths = sorted((len(ids) - done for ids in {ids[:end] for ids in answers if len(ids) > done}), reverse=True)
            if end is None:
                return total + _split(lengths, limit)[0]
            size = len(lengths) * max(lengths, default=0)  # a part that others continue is one pass
            total += size + PASS_COST if size <= limit else math.inf
            done = end
        return total

    longest = max(map(len, answers))
    cuts = [cut for cut in CUTS if cut < longest]
    return min([(), *((cut,) for cut in cuts), *combinations(cuts, 2)], key=cost)


def _distribution(
    logits: Tensor, where: NDArray[np.int64], targets: NDArray[np.int64], standardise: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Log-probability, hit and standardised log-probability of `targets (M,)` under rows `where (M,)` of `logits (N, V)`."""
    order = np.argsort(where, kind="stable")
    bounds = np.searchsorted(where[order], np.arange(0, len(logits) + LOGIT_ROWS, LOGIT_ROWS))
    log_probs, hits = np.empty(len(where), np.float32), np.empty(len(where), np.bool_)
    standardised = np.full(len(where), np.nan, np.float32)
    for part, rows in enumerate(logits.split(LOGIT_ROWS)):
        chosen = order[bounds[part] : bounds[part + 1]]
        row = torch.from_numpy(where[chosen] - part * LOGIT_ROWS).to(logits.device)
        token = torch.from_numpy(targets[chosen]).to(logits.device)
        distribution = rows.float().log_softmax(-1)
        found = distribution[row, token]
        log_probs[chosen], hits[chosen] = found.cpu().numpy(), (rows.argmax(-1)[row] == token).cpu().numpy()
        if standardise[chosen].any():
            wide = torch.from_numpy(np.flatnonzero(standardise[chosen])).to(logits.device)
            of = distribution[row[wide]]
            weights = of.exp()
            mean = (weights * of).sum(-1)
            variance = (weights * (of - mean[:, None]).square_()).sum(-1)
            standardised[chosen[wide.cpu().numpy()]] = ((found[wide] - mean) / variance.clamp(min=1e-6).sqrt()).cpu().numpy()
    return log_probs, hits, standardised
