"""Answers in a batch, as losses see them: logits where answer tokens are predicted, and the same under the frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Frozen:
    """What the frozen model made of the same answers, computed once before training. No gradient.

    Attributes:
        log_probs: `(N,)` of the answer tokens, nats.
        states: `(N, d)` last hidden states at the positions that predict them.
        output: the frozen output layer.
    """

    log_probs: Tensor
    states: Tensor
    output: nn.Module

    @cached_property
    def logits(self) -> Tensor:
        """`(N, V)` float32."""
        with torch.no_grad():
            return self.output(self.states).float()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Answers:
    """`B` answers of `N` tokens in all. A token at position t is predicted by the logits at t - 1; prompts are left out.

    Attributes:
        logits: `(N, V)` float32, with gradient.
        targets: `(N,)` int64, the answer tokens.
        rows: `(N,)` int64, the answer that each token is of; tokens of an answer stand together, in order.
        count: `B`.
        frozen: the same under the frozen model, None where a method did not ask for it.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor
    count: int
    frozen: Frozen | None = None

    @cached_property
    def token_nll(self) -> Tensor:
        """`(N,)` negative log-likelihood of each token, nats."""
        return F.cross_entropy(self.logits, self.targets, reduction="none")

    @property
    def mean_nll(self) -> Tensor:
        """L: the mean over all tokens, nats a token; a scalar."""
        return self.token_nll.mean()

    @property
    def nll(self) -> Tensor:
        """S: `(B,)` summed over the tokens of each answer, nats."""
        return self.sums(self.token_nll)

    @property
    def length_normalised_nll(self) -> Tensor:
        """`(B,)` mean over the tokens of each answer, nats a token."""
        return self.nll / self.sums(torch.ones_like(self.token_nll))

    @property
    def frozen_nll(self) -> Tensor:
        """S of the frozen model, `(B,)`."""
        return self.sums(-self.reference.log_probs)

    @property
    def reference(self) -> Frozen:
        """`frozen`, which the method has asked for."""
        assert self.frozen is not None, "the method's `reference` does not name this role"
        return self.frozen

    @property
    def is_first(self) -> Tensor:
        """`(N,)` bool: the first token of each answer."""
        return torch.cat([self.rows.new_ones(1, dtype=torch.bool), self.rows[1:] != self.rows[:-1]])

    def sums(self, values: Tensor) -> Tensor:
        """`(B,)` sums over the tokens of each answer of `(N,)` values."""
        return values.new_zeros(self.count).index_add(0, self.rows, values)
