"""Batches of examples, their keys, and a spread of items."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Sized
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from tempertilt.data.examples import Example

Item = TypeVar("Item")


def example_key(example: Example) -> str:
    """A hash of an example's tokens and of which are scored, 32 hex digits."""
    digest = hashlib.blake2b(example.input_ids.astype(np.int32).tobytes(), digest_size=16)
    digest.update(np.packbits(example.scored).tobytes())
    return digest.hexdigest()


def plan_batches(examples: Sequence[Sized], batch_tokens: int) -> list[list[int]]:
    """Indices of the examples in batches of similar length, longest first, at most `batch_tokens` padded tokens each."""
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]))
    batches: list[list[int]] = []
    width = 0
    for i in order:
        if not batches or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
            width = len(examples[i])
        batches[-1].append(i)
    return batches


class Batch(NamedTuple):
    """Right-padded examples (padding 0), each `(B, T)`: int64 ids and mask; bool `targets`, True at scored tokens."""

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor

    @property
    def predicting(self) -> Tensor:
        """`(B, T)` bool: the positions whose logits predict a scored token, in the order of `targets`."""
        return torch.roll(self.targets, -1, dims=1)  # the first token is never scored, so nothing wraps around


def pad_batch(examples: Sequence[Example], device: torch.device) -> Batch:
    """The examples as one batch on `device`."""
    shape = len(examples), max(len(example) for example in examples)
    ids, mask, targets = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = example.input_ids
        mask[row, : len(example)] = 1
        targets[row, : len(example)] = example.scored
    return Batch(*(torch.from_numpy(array).to(device) for array in (ids, mask, targets)))


def spread(items: Sequence[Item], n: int) -> list[Item]:
    """`n` items at even distances, or all of them if there are fewer."""
    if n >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]
