"""Distributions over K tokens and the rest as one, in each of which one token is to have what is wanted.

All are natural logarithms: `tail (N, K)` and `rest (N,)` of what the others follow, `rows (N,)` the column of the one token,
`wanted (N,)` what it is to have.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TAU = (0.5, 3.0)
BISECTIONS = 12


def with_token(tail: Tensor, rest: Tensor, rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The distribution that gives the token of each row `wanted (N,)`, and the others what is left, as the tail has it."""
    place = rows[:, None]
    tail = tail.scatter(1, place, -math.inf)
    normaliser = torch.logaddexp(tail.logsumexp(-1), rest)
    left = torch.log1p(-wanted.exp()) - normaliser
    return (tail + left[:, None]).scatter(1, place, wanted[:, None]), rest + left


def below_the_likeliest(tail: Tensor, rest: Tensor, rows: Tensor, wanted: Tensor) -> Tensor:
    """`wanted (N,)`, lowered where it is less than a half: to half of what the likeliest other token has then, at most.

    Else a number would come out digit by digit: each true digit with little probability, and yet the likeliest. Other arguments
    as of `with_token`.
    """
    tail = tail.scatter(1, rows[:, None], -math.inf)
    best = tail.amax(-1) - torch.logaddexp(tail.logsumexp(-1), rest)
    half = best - math.log(2) - torch.log1p(best.exp() / 2)  # w = (1 - w) exp(best) / 2
    return torch.where(wanted < math.log(0.5), wanted.minimum(half), wanted)


def with_token_lowered(
    base: Tensor, base_rest: Tensor, tail: Tensor, rest: Tensor, rows: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """As `with_token` where the token is to have less than half of what the base gives it; elsewhere the base's distribution."""
    lowered = wanted < base.gather(1, rows[:, None])[:, 0] - math.log(2)
    target, target_rest = with_token(tail, rest, rows, below_the_likeliest(tail, rest, rows, wanted))
    return torch.where(lowered[:, None], target, base), torch.where(lowered, target_rest, base_rest)


def matching_tau(tail: Tensor, rest: Tensor, rows: Tensor, wanted: Tensor, entropy: float) -> float:
    """The tau at which the mean entropy of the targets is `entropy`; the nearest end of `TAU` where none is."""
    step = max(1, len(rows) // 1000)
    tail, rest, rows, wanted = tail[::step], rest[::step], rows[::step], wanted[::step]

    def at(tau: float) -> float:
        columns, others = with_token(tau * tail, tau * rest, rows, wanted)
        return float(-(columns.exp() * columns.clamp(min=-50)).sum(-1).mean() - (others.exp() * others.clamp(min=-50)).mean())

    low, high = TAU
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) > entropy else (low, middle)
    return (low + high) / 2
