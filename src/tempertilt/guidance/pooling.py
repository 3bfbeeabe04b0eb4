"""What is remembered of a sequence: causal means of states, and the positions of its latest events.

"mean" pooling (the paper): `c_t = sum_{i <= t} m_i h_i / max(1, sum_{i <= t} m_i)` with `m` the attention mask.
"last" pooling: `c_t = h_t`, nothing to remember.

Pooling is linear, so the model pools `u_t = A h_t` (r numbers) instead of `h_t` (d numbers). A position's memory is one row of
numbers: r sums, the count of real tokens, and for each kind of event the position, counted from 1, of the latest one, 0 for none.
For each reply (`tempertilt.guidance.reply`), two more numbers say how much of it the text ends with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tempertilt.guidance.reply import FORMS

Follow = Callable[[Tensor, Tensor], Tensor]
"""From positions `(B, n)` and what was said before `(B, 2)` to how much of a reply the text ends with, `(B, n, 2)`."""


class Memory(NamedTuple):
    """What is remembered after each position.

    Attributes:
        means: `(B, T, r)` causal means, 0 where no real token has come yet.
        position: `(B, T)` of the token among the real ones, counted from 1.
        latest: `(B, T, k)` positions of the latest events, 0 for none.
        ends: `(B, T, 2)` how much of a reply the text ends with, two numbers for each reply; None without a reply.
    """

    means: Tensor
    position: Tensor
    latest: Tensor
    ends: Tensor | None = None


def causal_mean(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Running mean over the positions up to and including each one, padding left out.

    Args:
        states: `(B, T, r)`.
        mask: `(B, T)`, 1 = real token; None = all real.

    Returns:
        `(B, T, r)` float32; 0 where no real token has come yet.
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


def scan(states: Tensor, mask: Tensor | None, events: Tensor | None = None, follows: Sequence[Follow] = ()) -> Memory:
    """The memory of whole sequences: states `(B, T, r)`, mask `(B, T)`, events `(B, T, k)` bool; padding left out."""
    rank, rows = states.shape[-1], memory_rows(states, mask, events)
    return read_memory(follow_replies(rows, None, rank, follows), rank, len(follows))


def memory_rows(states: Tensor, mask: Tensor | None, events: Tensor | None = None) -> Tensor:
    """The rows `(B, T, r + 1 + k)` float32 of sequences that begin here; arguments as of `scan`."""
    sums, counts = _masked_cumsum(states, mask)
    parts = [sums, counts.unsqueeze(-1)]
    if events is not None:
        events = events.to(sums.device)
        if mask is not None:
            events = events & mask.to(sums.device).bool().unsqueeze(-1)
        parts.append((counts.unsqueeze(-1) * events).cummax(1).values)
    return torch.cat(parts, -1)


def continue_rows(new: Tensor, last: Tensor, rank: int) -> Tensor:
    """Rows of new positions `(B, n, w)`, as `memory_rows` gives them, after the last old row `(B, 1, w)`."""
    before = last[..., rank : rank + 1]
    events = new[..., rank + 1 :]
    shifted = torch.where(events > 0, events + before, last[..., rank + 1 : new.shape[-1]])
    return torch.cat([new[..., : rank + 1] + last[..., : rank + 1], shifted], -1)


def follow_replies(rows: Tensor, last: Tensor | None, rank: int, follows: Sequence[Follow]) -> Tensor:
    """New rows `(B, n, w)` with two more numbers for each of R replies, after the last old row `(B, 1, w + 2R)`; None begins."""
    if not follows:
        return rows
    width = FORMS * len(follows)
    before = rows.new_zeros(rows.shape[0], width) if last is None else last[:, 0, -width:]
    counts = [follow(rows[..., rank], part) for follow, part in zip(follows, before.split(FORMS, -1))]
    return torch.cat([rows, *counts], -1)


def read_memory(rows: Tensor, rank: int, replies: int = 0) -> Memory:
    """Means, counts and latest events in rows `(B, n, r + 1 + k)`, and two more numbers for each of so many `replies`."""
    count, stop = rows[..., rank], rows.shape[-1] - FORMS * replies
    means = rows[..., :rank] / count.clamp(min=1).unsqueeze(-1)
    return Memory(means, count, rows[..., rank + 1 : stop], rows[..., stop:] if replies else None)
