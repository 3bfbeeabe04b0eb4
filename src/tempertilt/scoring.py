"""Likelihood of answers under any causal LM: a prompt runs once for all its answers, logits only where answers are predicted."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, LinearAttentionCacheLayerMixin

from tempertilt.errors import ConfigError, ModelError
from tempertilt.memory import is_out_of_memory

log = logging.getLogger("tempertilt")

BATCHES_PER_PROMPT_PASS = 4
"""Prompts are run together with answers of so many times the budget of a forward pass: their state is small."""

LAW_ROWS = 256
"""Positions whose whole next-token law is held in float32 at a time."""


@dataclass(frozen=True)
class Question:
    """A prompt and the answers to score, as token ids; every answer has at least one token."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.prompt or not self.answers or not all(self.answers):
            raise ConfigError("a question to score needs a prompt token and answers of at least one token each")


class AnswerScore(NamedTuple):
    """One answer of n tokens under a model.

    Attributes:
        log_probs: `(n,)` float32, nats.
        hits: `(n,)` bool, whether each token is the most likely one given the true tokens before it.
        standardised: `(n,)` float32, (log p - mean) / standard deviation of log p under the model's law at that position.
    """

    log_probs: NDArray[np.float32]
    hits: NDArray[np.bool_]
    standardised: NDArray[np.float32]

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, nats a token."""
        return -float(self.log_probs.mean(dtype=np.float64))


def plan_questions(questions: Sequence[Question], batch_tokens: int) -> list[list[int]]:
    """Batches of questions whose prompts have the same length (so that no prompt is padded), longest first.

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


class Scorer:
    """Scores answers under `model`, a `T3ForCausalLM` or any object with the forward of a transformers causal LM.

    Args:
        model: in eval mode.
        batch_tokens: positions in one forward pass, padding included; halved whenever memory runs out.
        hidden_token_id: a token inside the sequences that attention shall not see. None as it should be; open-unlearning's
            published figures hide its pad token, which in some chat templates is a token of the text.
    """

    def __init__(self, model: Any, batch_tokens: int = 1024, hidden_token_id: int | None = None) -> None:
        if batch_tokens < 1:
            raise ConfigError(f"batch_tokens is {batch_tokens}; valid is a whole number >= 1")
        self.model = model
        self.batch_tokens = batch_tokens
        self.hidden_token_id = hidden_token_id
        supported = getattr(model, "_supports_logits_to_keep", None)
        self.keeps = bool(supported()) if supported is not None else False

    @torch.inference_mode()
    def score(self, questions: Sequence[Question]) -> list[list[AnswerScore]]:
        """Scores of each question's answers. Questions whose prompts have the same length share passes."""
        out: list[list[AnswerScore]] = [[] for _ in questions]
        for batch in plan_questions(questions, BATCHES_PER_PROMPT_PASS * self.batch_tokens):
            for i, scores in zip(batch, self._until_it_fits([questions[i] for i in batch])):
                out[i] = scores
        return out

    def _until_it_fits(self, questions: list[Question]) -> list[list[AnswerScore]]:
        while True:
            try:
                return self._score_batch(questions)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                longest = max(len(q.prompt) + max(map(len, q.answers)) for q in questions)
                if self.batch_tokens <= longest and len(questions) == 1:
                    raise ModelError(f"no memory left for one sequence of {longest} tokens: {error}") from error
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.batch_tokens = max(1, self.batch_tokens // 2)
            log.warning("memory ran out: batches of %d tokens from here on", self.batch_tokens)
            if len(questions) > 1:
                middle = len(questions) // 2
                return self._until_it_fits(questions[:middle]) + self._until_it_fits(questions[middle:])

    def _score_batch(self, questions: list[Question]) -> list[list[AnswerScore]]:
        """Questions whose prompts have the same length."""
        device = self.model.device
        prompts = torch.tensor([question.prompt for question in questions], device=device)
        mask = self._visible(prompts, torch.ones_like(prompts))
        output = self.model(
            input_ids=prompts, attention_mask=mask, use_cache=True, **({"logits_to_keep": 1} if self.keeps else {})
        )
        cache = getattr(output, "cache", None)
        rows = [(q, answer) for q, question in enumerate(questions) for answer in question.answers]
        if not isinstance(cache, Cache) or any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers):
            return self._gather(questions, rows, self._unshared(questions, rows))
        first = output.logits[:, -1]
        scores: list[AnswerScore | None] = [None] * len(rows)
        chunks = self._chunks(rows)
        for number, chunk in enumerate(chunks):
            own = cache if number == len(chunks) - 1 else copy.deepcopy(cache)
            for i, score in zip(chunk, self._continue(own, mask, first, [rows[i] for i in chunk])):
                scores[i] = score
        return self._gather(questions, rows, scores)

    def _chunks(self, rows: list[tuple[int, tuple[int, ...]]]) -> list[list[int]]:
        """Rows by falling length of their answers, so many at a time as the budget of positions allows."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i][1]))
        chunks: list[list[int]] = []
        for i in order:
            if not chunks or (len(chunks[-1]) + 1) * len(rows[chunks[-1][0]][1]) > self.batch_tokens:
                chunks.append([])
            chunks[-1].append(i)
        return chunks

    def _continue(
        self, cache: Cache, prompt_mask: Tensor, first: Tensor, rows: list[tuple[int, tuple[int, ...]]]
    ) -> list[AnswerScore]:
        """Scores of answers that continue prompts in `cache`; its rows are replaced by theirs."""
        device = first.device
        lengths = torch.tensor([len(answer) for _, answer in rows], device=device)
        width = int(lengths.max())
        targets = torch.tensor([answer + (0,) * (width - len(answer)) for _, answer in rows], device=device)
        real = torch.arange(width, device=device) < lengths[:, None]
        owners = torch.tensor([q for q, _ in rows], device=device)
        parts = [self._law(first[owners], targets[:, 0])]
        if width > 1:
            cache.reorder_cache(owners)  # not batch_select_indices, which state-space layers lack
            inputs, keep = targets[:, :-1], real[:, 1:]
            visible = self._visible(inputs, keep.long())
            output = self.model(
                input_ids=inputs,
                attention_mask=torch.cat([prompt_mask[owners], visible], 1),
                cache=cache,
                use_cache=True,
                **({"logits_to_keep": keep} if self.keeps else {}),
            )
            logits = output.logits if self.keeps else output.logits[keep]
            parts.append(self._law(logits, targets[:, 1:][keep]))
        rest = [0, *(len(answer) - 1 for _, answer in rows)]
        ends = np.cumsum(rest)
        return [
            AnswerScore(*(np.concatenate([head[i : i + 1], tail[ends[i] : ends[i + 1]]]) for head, tail in self._pairs(parts)))
            for i in range(len(rows))
        ]

    @staticmethod
    def _pairs(parts: list[AnswerScore]) -> list[tuple[Any, Any]]:
        """First tokens and the others, for each field of a score."""
        empty = AnswerScore(np.zeros(0, np.float32), np.zeros(0, np.bool_), np.zeros(0, np.float32))
        return list(zip(parts[0], parts[1] if len(parts) > 1 else empty))

    def _unshared(self, questions: list[Question], rows: list[tuple[int, tuple[int, ...]]]) -> list[AnswerScore | None]:
        """Scores from whole sequences, those of one length together: state-space layers can't go on by several tokens."""
        lengths: dict[int, list[int]] = {}
        for i, (_, answer) in enumerate(rows):
            lengths.setdefault(len(answer), []).append(i)
        scores: list[AnswerScore | None] = [None] * len(rows)
        for n, group in lengths.items():
            step = max(1, self.batch_tokens // (len(questions[0].prompt) + n))
            for chunk in (group[start : start + step] for start in range(0, len(group), step)):
                ids = torch.tensor([questions[rows[i][0]].prompt + rows[i][1] for i in chunk], device=self.model.device)
                mask = self._visible(ids, torch.ones_like(ids))
                logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -n - 1 : -1]
                law = self._law(logits.flatten(0, 1), ids[:, -n:].flatten())
                for i, *fields in zip(chunk, *(np.split(field, len(chunk)) for field in law)):
                    scores[i] = AnswerScore(*fields)
        return scores

    def _visible(self, ids: Tensor, mask: Tensor) -> Tensor:
        return mask if self.hidden_token_id is None else mask * (ids != self.hidden_token_id)

    @staticmethod
    def _law(logits: Tensor, targets: Tensor) -> AnswerScore:
        """What is kept of the next-token laws `(N, V)` at the targets `(N,)`, in float32."""
        kept: list[Tensor] = []
        for rows, wanted in zip(logits.split(LAW_ROWS), targets.split(LAW_ROWS)):
            law = rows.float().log_softmax(-1)
            log_probs = law.gather(-1, wanted[:, None]).squeeze(-1)
            hits = rows.argmax(-1) == wanted
            weights = law.exp()
            mean = (weights * law).sum(-1)
            variance = (weights * law.square_()).sum(-1) - mean.square()
            standardised = (log_probs - mean) / variance.clamp(min=1e-6).sqrt()
            kept.append(torch.stack([log_probs, hits.float(), standardised]))
        log_probs, hits, standardised = torch.cat(kept, 1).cpu().numpy()
        return AnswerScore(log_probs, hits.astype(bool), standardised)

    @staticmethod
    def _gather(
        questions: list[Question], rows: list[tuple[int, tuple[int, ...]]], scores: Sequence[AnswerScore | None]
    ) -> list[list[AnswerScore]]:
        out: list[list[AnswerScore]] = [[] for _ in questions]
        for (q, _), score in zip(rows, scores):
            assert score is not None
            out[q].append(score)
        return out
