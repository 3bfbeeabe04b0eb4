"""Where the question and the answer are in the tokens so far, and whether a question is about what is to be forgotten."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.errors import ConfigError, DataError
from tempertilt.methods.task import Task

Ids = tuple[int, ...]

PROBES = ("Who wrote the letter?", "Is 7 a prime number")
"""Two questions that begin and end differently: what their prompts share is the template."""


class PromptReader:
    """Finds the question in token ids: after the template's beginning, before its end, which opens the answer.

    Args:
        tokenizer, examples: as prompts are built.

    Attributes:
        before, after: token ids that stand before every question and after it.
    """

    def __init__(self, tokenizer: Any, examples: ExampleConfig) -> None:
        one, other = (encode_question(probe, tokenizer, examples) for probe in PROBES)
        self.before: Ids = tuple(_shared(one, other))
        self.after: Ids = tuple(reversed(list(_shared(one[::-1], other[::-1]))))
        if not self.after:
            raise DataError("the chat template puts nothing between a question and its answer, so the two can't be told apart")

    def read(self, ids: Sequence[int]) -> tuple[Ids, int] | None:
        """The question's ids and the position of the answer's first token, or None while the question goes on.

        `ids` are real tokens only. The first end after the beginning counts: a chat is judged by its first question.
        """
        start, width = len(self.before), len(self.after)
        for at in range(start, len(ids) - width + 1):
            if tuple(ids[at : at + width]) == self.after:
                return tuple(ids[start:at]), at + width
        return None

    def in_question(self, ids: Sequence[int]) -> list[bool]:
        """Whether each token is of the question, as far as it can be told when it comes."""
        start = len(self.before)
        end = next((i for i in range(start, len(ids)) if ids[i] == self.after[0]), len(ids))
        return [start <= i < end for i in range(len(ids))]


def _shared(one: Sequence[int], other: Sequence[int]) -> Iterator[int]:
    for a, b in zip(one, other):
        if a != b:
            return
        yield a


class PromptClassifier(nn.Module):
    """Logistic regression on a question's tokens and pairs of neighbours: P(forget | question).

    Features are hashed presences, scaled to unit length; weights minimise the log-loss, both classes weighted equally, with an
    L2 penalty, by L-BFGS.

    Args:
        forget, retain: questions as token ids.
        buckets: number of hash buckets.
        penalty: L2 penalty, weights squared over twice the number of questions times this.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, forget: Sequence[Ids], retain: Sequence[Ids], buckets: int = 2**14, penalty: float = 1.0) -> None:
        super().__init__()
        self.buckets = buckets
        features = torch.from_numpy(np.stack([self._features(ids) for ids in [*forget, *retain]]))
        labels = torch.tensor([1.0] * len(forget) + [0.0] * len(retain))
        share = labels / len(forget) + (1 - labels) / len(retain)
        weight, bias = torch.zeros(buckets, requires_grad=True), torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(features @ weight + bias, labels, share / 2, reduction="sum")
            loss = loss + penalty / (2 * len(labels)) * weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", bias.detach())
        self._known: dict[Ids, float] = {}

    def probability(self, question: Ids) -> float:
        """P(forget | question)."""
        if question not in self._known:
            logit = torch.from_numpy(self._features(question)) @ self.weight.cpu() + self.bias.cpu()
            self._known[question] = float(logit.sigmoid())
        return self._known[question]

    def _features(self, ids: Ids) -> NDArray[np.float32]:
        out = np.zeros(self.buckets, dtype=np.float32)
        for gram in {*((i,) for i in ids), *itertools.pairwise(ids)}:
            out[zlib.crc32(np.array(gram, dtype=np.int64).tobytes()) % self.buckets] = 1.0
        return out / max(1.0, float(np.linalg.norm(out)))


def real_rows(tokens: Tensor, mask: Tensor) -> list[tuple[list[int], list[int]]]:
    """For each sequence the ids of its real tokens and their positions."""
    rows = []
    for ids, real in zip(tokens.tolist(), mask.tolist()):
        where = [i for i, r in enumerate(real) if r]
        rows.append(([ids[i] for i in where], where))
    return rows


def fit_classifier(task: Task, reader: PromptReader) -> PromptClassifier:
    """A classifier of the task's questions."""
    sides = []
    for records in (task.forget, task.retain):
        read = [reader.read(example.input_ids.tolist()) for example in task.examples_of(records)]
        sides.append([found[0] for found in read if found is not None])
    if not all(sides):
        raise ConfigError("this method needs records with questions, of both kinds; there are none that can be told apart")
    return PromptClassifier(sides[0], sides[1])
