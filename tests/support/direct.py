"""Examples of a few tokens, and what a model says of them by one pass without a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from support.architectures import VOCAB
from tempertilt.data.examples import Example


def example(ids: Sequence[int], scored_from: int) -> Example:
    return Example(np.array(ids, np.int32), np.arange(len(ids)) >= scored_from, "d", "s", 0)


def random_example(length: int = 14, seed: int = 0) -> Example:
    return example(np.random.default_rng(seed).integers(3, VOCAB, length).tolist(), 4)


def direct(model: Any, one: Example) -> torch.Tensor:
    """`(n_scored, V)` log-probabilities, float64, of an example's scored tokens: one pass, no batch."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(one.input_ids).long()[None]).logits[0].double()
    return logits.log_softmax(-1)[np.flatnonzero(one.scored) - 1]
