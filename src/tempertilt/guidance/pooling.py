"""Causal pooling of hidden states.

"mean" pooling (the paper): `c_t = sum_{i <= t} m_i h_i / max(1, sum_{i <= t} m_i)` with `m` the attention mask.
"last" pooling: `c_t = h_t`, no state at all.

Pooling is linear, so the model pools `u_t = A h_t` (r numbers) instead of `h_t` (d numbers).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def causal_mean(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Running mean over the positions up to and including each one, padding left out.

    Args:
        states: `(B, T, r)`.
        mask: `(B, T)`, 1 = real token; None = all real.

    Returns:
        `(B, T, r)` float32; 0 where no real token has been seen yet.
    """
    sums, counts = _masked_cumsum(states, mask)
    return sums / counts.clamp(min=1).unsqueeze(-1)


def pool(states: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Pool whole sequences: `(B, T, r)` states and `(B, T)` mask to `(B, T, r)` float32."""
    return causal_mean(states, mask) if pooling == "mean" else states.float()


def _masked_cumsum(states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cumulative sums `(B, T, r)` and counts `(B, T)` in float32."""
    states = states.float()
    if mask is None:
        counts = torch.arange(1, states.shape[1] + 1, device=states.device, dtype=torch.float32)
        return states.cumsum(1), counts.expand(states.shape[0], -1)
    mask = mask.to(device=states.device, dtype=torch.float32)
    return (states * mask.unsqueeze(-1)).cumsum(1), mask.cumsum(1)


def scan(states: Tensor, mask: Tensor | None, evidence: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Causal means `(B, T, r)` and highest evidence so far `(B, T)` of whole sequences, float32; padding left out.

    Where there is no evidence (none given, or nothing but padding yet) it is minus infinity.
    """
    return read_memory(memory_of(states, mask, evidence))


def memory_of(states: Tensor, mask: Tensor | None, evidence: Tensor | None) -> Tensor:
    """Sums, count and highest evidence of each position, `(B, T, r + 2)` float32."""
    sums, counts = _masked_cumsum(states, mask)
    if evidence is None:
        highest = torch.full_like(counts, -math.inf)
    else:
        evidence = evidence.float()
        if mask is not None:
            evidence = evidence.masked_fill(mask.to(evidence.device) == 0, -math.inf)
        highest = evidence.cummax(1).values.to(sums.device)
    return torch.cat([sums, counts.unsqueeze(-1), highest.unsqueeze(-1)], -1)


def continue_memory(new: Tensor, last: Tensor) -> Tensor:
    """The memory of new positions `(B, n, w)` after that of the last old one `(B, 1, w)`."""
    return torch.cat([new[..., :-1] + last[..., :-1], new[..., -1:].maximum(last[..., -1:])], -1)


def read_memory(memory: Tensor) -> tuple[Tensor, Tensor]:
    """Causal means `(B, n, r)` and highest evidence `(B, n)` in memories `(B, n, r + 2)`."""
    return memory[..., :-2] / memory[..., -2:-1].clamp(min=1), memory[..., -1]


def empty_memory(like: Tensor) -> Tensor:
    """The memory of no position, `(1, 1, w)`."""
    nothing = like.new_zeros(1, 1, like.shape[-1])
    nothing[..., -1] = -math.inf
    return nothing


def allocate_memory(like: Tensor, capacity: int) -> Tensor:
    """Zeros for `capacity` positions, of the batch, width and type of `like`."""
    return like.new_zeros(like.shape[0], capacity, like.shape[-1])
