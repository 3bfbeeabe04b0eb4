"""From the guided logits of one position to a token, and the numbers that an answer may show.

Everything starts from the *guided* logits: what the model class returns, tempered and tilted. The base's logits never come here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

GREEDY_BELOW = 1e-4  # temperatures at which dividing by them would overflow

LOWEST = -9999.0  # log-probabilities below are shown as this one: JSON has no infinity


class Token(NamedTuple):
    """A token, its log-probability (nats) and the likeliest alternatives, `(id, log-probability)`, best first."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_tokens: of the answer.
        temperature: of sampling, 0 = greedy; on top of the tilt's.
        top_p, top_k, min_p: truncation as in transformers; 1, 0 and 0 are none.
        seed: of this answer's own generator; None = fresh.
        presence_penalty, frequency_penalty: subtracted from logits of tokens of the answer so far, once and each time.
        logit_bias: added to the guided logits of tokens.
        logprobs: alternatives to show; None = no numbers.
        stops: texts that end the answer.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    stops: tuple[str, ...] = ()


class Sampler:
    """Draws the tokens of one answer, by a random generator of its own: who else is being answered changes nothing."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._counts: Counter[int] = Counter()
        self._generator: torch.Generator | None = None
        self._warpers = LogitsProcessorList()
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            self._warpers.append(MinPLogitsWarper(sampling.min_p))

    def choose(self, logits: Tensor, best: int | None = None) -> Token:
        """The next token from guided logits `(V,)` float32; `best` is their greatest, if that is known already.

        The numbers are those of the guided distribution, before the request's own bias, penalties, temperature and truncation.
        """
        adjusted = self._adjusted(logits)
        token = best if best is not None and adjusted is logits and self._greedy else self._draw(adjusted)
        self._counts[token] += 1
        if self.sampling.logprobs is None:
            return Token(token)
        return token_of(torch.log_softmax(logits, -1), token, self.sampling.logprobs)

    def _adjusted(self, logits: Tensor) -> Tensor:
        sampling = self.sampling
        changes = dict(sampling.logit_bias)
        if sampling.presence_penalty or sampling.frequency_penalty:
            for token, count in self._counts.items():
                changes[token] = changes.get(token, 0.0) - sampling.presence_penalty - sampling.frequency_penalty * count
        if not changes:
            return logits
        ids = torch.tensor(list(changes), device=logits.device)
        return logits.index_add(0, ids, torch.tensor(list(changes.values()), device=logits.device, dtype=logits.dtype))

    @property
    def _greedy(self) -> bool:
        return self.sampling.temperature < GREEDY_BELOW

    def _draw(self, logits: Tensor) -> int:
        if self._greedy:
            return int(logits.argmax())
        if self._generator is None:
            self._generator = torch.Generator(logits.device)
            if self.sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self.sampling.seed)
        scores = (logits / self.sampling.temperature).unsqueeze(0)
        return int(torch.multinomial(self._warpers(scores, scores).softmax(-1)[0], 1, generator=self._generator))


def token_of(logprobs: Tensor, token: int, alternatives: int) -> Token:
    """`token` with its number, and the likeliest `alternatives`, from log-probabilities `(V,)`."""
    logprobs = logprobs.clamp(min=LOWEST)
    top = logprobs.topk(min(alternatives, len(logprobs)))
    return Token(token, float(logprobs[token]), tuple(zip(top.indices.tolist(), top.values.tolist())))
