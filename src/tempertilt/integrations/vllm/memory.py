"""What an adapter remembers of a sequence, as more attention layers: it lives in the engine's own paged cache.

A causal mean is attention with constant scores, the latest event is attention with very steep ones that grow with the position:

    mean of u_i over i <= t            queries 0, values u_i
    latest event at or before t        query 1; keys and values i / SPAN at events, 0 elsewhere; scores are keys * BETA

So continuous batching, chunked prefill, prefix caching, preemption, forks and rejected drafts are the engine's own affair, and no
state of ours exists for any request.

A layer has the heads of the model's own layers. The mean is read from the first query head of each key/value head. Each kind of
event has some numbers at the end of a key/value head, and a query head of that group reads it. Where the query heads do not
suffice, further layers take the other kinds.

The latest event is exact: neighbouring positions differ by BETA / SPAN = 16 in their scores, so all others together weigh less
than 1e-6 of it, and positions are whole numbers, to which the output is rounded. Without an event the output is 0. BETA stays so
low that scores keep their place in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tempertilt.errors import ConfigError

BETA = 2.0**24
SPAN = 2.0**20  # positions that can be told from each other
PARTS = 3  # numbers of the cache's type that hold a float32 between 0 and 1


def split(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`(...)` float32 in [0, 1] as `(..., p)` numbers of `dtype` whose sum it is: 1 in float32, 3 in 16-bit types."""
    if dtype == torch.float32:
        return value.unsqueeze(-1)
    parts = []
    for _ in range(PARTS):
        parts.append(value.to(dtype))
        value = value - parts[-1].float()
    return torch.stack(parts, -1)


class Heads(NamedTuple):
    """The heads of an attention layer, on this rank of a tensor-parallel group, and the type of its cache."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def parts(self) -> int:
        """Numbers that an event takes."""
        return 1 if self.dtype == torch.float32 else PARTS


class Layout:
    """Where what is remembered lies in the heads of one attention layer.

    Args:
        rank: numbers of the mean, 0 for none.
        kinds: kinds of events that are wanted, at most; `kinds` of the layout is how many it has found room for.
        heads: of the layer.

    Raises:
        ConfigError: the heads hold fewer numbers than the mean has.
    """

    def __init__(self, rank: int, kinds: int, heads: Heads) -> None:
        self.rank, self.heads = rank, heads
        size, parts = heads.head_size, heads.parts
        alone = rank and heads.group == 1  # no query head is left beside the mean's: an event takes a key/value head for itself
        free = [(kv, q) for kv in reversed(range(heads.num_kv_heads)) for q in range(1 if rank and not alone else 0, heads.group)]
        per_head = size // parts
        used = [0] * heads.num_kv_heads
        self.places: list[tuple[int, int, int]] = []  # key/value head, query head of its group, first number, of each kind
        for kv, q in free:
            if len(self.places) < kinds and used[kv] < per_head and (not alone or rank <= kv * size):
                used[kv] += 1
                self.places.append((kv, q, size - used[kv] * parts))
        room = [0 if alone and taken else size - taken * parts for taken in used]
        columns = [kv * size + i for kv in range(heads.num_kv_heads) for i in range(room[kv])]
        if rank > len(columns):
            raise ConfigError(
                f"the head has rank {rank}, and the engine's cache has room for {len(columns)} numbers a token and layer "
                f"({heads.num_kv_heads} key/value heads of {size}): fit with a lower rank, or with pooling 'last'"
            )
        self.columns = columns[:rank]

    @property
    def kinds(self) -> int:
        """Kinds of events that it holds."""
        return len(self.places)

    def write(self, states: Tensor, events: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `(n, heads * size)`, keys and values `(n, kv_heads * size)`.

        Args:
            states: `(n, r)`.
            events: `(n, kinds)` bool.
            position: `(n,)` of the tokens, counted from 1.
        """
        n, heads = len(position), self.heads
        size = heads.head_size
        queries = states.new_zeros(n, heads.num_heads * size, dtype=heads.dtype)
        keys, values = (states.new_zeros(n, heads.num_kv_heads * size, dtype=heads.dtype) for _ in range(2))
        values[:, self.columns] = states.to(heads.dtype)
        parts = split((position.float() / SPAN)[:, None] * events, heads.dtype)
        for kind, (kv, q, first) in enumerate(self.places):
            here = (kv * heads.group + q) * size + first
            queries[:, here : here + heads.parts] = 1.0
            for rows in (keys, values):
                rows[:, kv * size + first : kv * size + first + heads.parts] = parts[:, kind]
        return queries, keys, values

    def read(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Means `(n, r)` and positions of the latest events `(n, kinds)`, float32, of the output `(n, heads * size)`."""
        heads = self.heads
        rows = output.view(-1, heads.num_kv_heads, heads.group, heads.head_size)
        means = rows[:, :, 0].reshape(len(output), -1)[:, self.columns].float()
        latest = [rows[:, kv, q, first : first + heads.parts].float().sum(-1) for kv, q, first in self.places]
        return means, torch.stack(latest, -1).mul(SPAN).round() if latest else means.new_zeros(len(output), 0)


def plan_layers(rank: int, kinds: int, heads: Heads) -> list[Layout]:
    """As many layers as it takes; the mean is in the first.

    Raises:
        ConfigError: the heads do not hold the mean.
    """
    layouts = [Layout(rank, kinds, heads)]
    while (left := kinds - sum(layout.kinds for layout in layouts)) > 0:
        layouts.append(Layout(0, left, heads))
    return layouts


class CausalMemory(nn.Module):
    """Causal mean and latest events of a sequence by attention layers of the engine.

    The layers get no cache configuration, so that they are neither windowed nor quantised where the model's own layers are.
    """

    def __init__(self, layouts: Sequence[Layout], prefixes: Sequence[str]) -> None:
        super().__init__()
        from vllm.model_executor.layers.attention import Attention

        self.layouts = list(layouts)
        self.layers = nn.ModuleList(
            Attention(
                layout.heads.num_heads,
                layout.heads.head_size,
                scale=BETA,
                num_kv_heads=layout.heads.num_kv_heads,
                cache_config=None,
                prefix=prefix,
            )
            for layout, prefix in zip(self.layouts, prefixes)
        )

    def forward(self, states: Tensor, events: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Append the batch's tokens; causal means `(n, r)` and positions of the latest events `(n, k)`, float32.

        Args:
            states: `(n, r)`, r may be 0.
            events: `(n, k)` bool, k may be 0.
            position: `(n,)`, counted from 1.
        """
        means, latest, first = [], [], 0
        for layout, layer in zip(self.layouts, self.layers):
            some = events[:, first : first + layout.kinds]
            read = layout.read(layer(*layout.write(states[:, : layout.rank], some, position)))
            means.append(read[0])
            latest.append(read[1])
            first += layout.kinds
        return torch.cat(means, -1), torch.cat(latest, -1)
