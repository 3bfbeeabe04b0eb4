"""What an adapter remembers of a sequence, as one more attention layer: it lives in the engine's own paged cache.

A causal mean is attention with constant scores, a running maximum is attention with very steep ones:

    mean of u_i over i <= t        queries 0, values u_i
    max  of g_i over i <= t        query 1, keys and values g_i, scores g_i * BETA

So continuous batching, chunked prefill, prefix caching, preemption, forks and rejected drafts are the engine's own affair, and no
state of ours exists for any request.

The layer has the heads of the model's own layers, and one of its query heads takes the maximum:

    values, all key/value heads in a row     u_1 .. u_r   0 .. 0   g
    keys                                     0 .. 0; in the last head g, 0 .. 0
    queries                                  0 .. 0; in the last query head 1, 0 .. 0

The mean is read from the first query head of each key/value head, the maximum from the last query head of all.

Error of the maximum: the output is a weighted mean of the g_i, short of the largest by at most W((n - 1) / e) / BETA < 2 ln(n) /
BETA (W is Lambert's function), less than 2e-6 at a million positions, and 0 where all that is not the largest is lower by more
than 1e-5; beside that, the rounding of a mean. A mean of zeros is 0 exactly: a gate that is shut is shut bit for bit. BETA stays
so low that kernels which round the scaled score once (base-2 softmax) are off by a common factor below e^2, which cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tempertilt.errors import ConfigError

BETA = 2.0**24
PARTS = 3  # numbers of the cache's type that hold a float32 between 0 and 1


def split(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`(n,)` float32 in [0, 1] as `(n, p)` numbers of `dtype` whose sum it is: 1 in float32, 3 in 16-bit types."""
    if dtype == torch.float32:
        return value.unsqueeze(-1)
    parts = []
    for _ in range(PARTS):
        parts.append(value.to(dtype))
        value = value - parts[-1].float()
    return torch.stack(parts, -1)


class Layout:
    """Where what is remembered lies in the heads of an attention layer.

    Args:
        rank: numbers of the mean, 0 for none.
        highest: whether there is a maximum.
        num_heads, num_kv_heads, head_size: of the layer, on this rank of a tensor-parallel group.
        dtype: of the cache.

    Raises:
        ConfigError: the heads hold fewer numbers.
    """

    def __init__(self, rank: int, highest: bool, num_heads: int, num_kv_heads: int, head_size: int, dtype: torch.dtype) -> None:
        self.rank, self.highest = rank, highest
        self.num_heads, self.num_kv_heads, self.head_size, self.dtype = num_heads, num_kv_heads, head_size, dtype
        self.group = num_heads // num_kv_heads
        self.parts = (1 if dtype == torch.float32 else PARTS) if highest else 0
        shared = self.group > 1  # whether the last key/value head has a query head left for its mean
        room = num_kv_heads * head_size - self.parts if shared or not highest else (num_kv_heads - 1) * head_size
        if rank > room:
            raise ConfigError(
                f"the head has rank {rank}, and the engine's cache has room for {room} numbers a token and layer "
                f"({num_kv_heads} key/value heads of {head_size}): fit with a lower rank, or with pooling 'last'"
            )

    def write(self, states: Tensor | None, value: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `(n, heads * size)`, keys and values `(n, kv_heads * size)` for `(n, r)` states and `(n,)` values in [0, 1]."""
        some = states if states is not None else value
        assert some is not None
        n, width = some.shape[0], self.num_kv_heads * self.head_size
        queries = some.new_zeros(n, self.num_heads * self.head_size, dtype=self.dtype)
        keys, values = (some.new_zeros(n, width, dtype=self.dtype) for _ in range(2))
        if states is not None:
            values[:, : self.rank] = states.to(self.dtype)
        if value is not None:
            parts = split(value, self.dtype)
            first = (self.num_heads - 1) * self.head_size
            queries[:, first : first + self.parts] = 1.0
            first = (self.num_kv_heads - 1) * self.head_size
            keys[:, first : first + self.parts] = parts
            values[:, width - self.parts :] = parts
        return queries, keys, values

    def read(self, output: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Means `(n, r)` and maxima `(n,)`, float32, of the layer's output `(n, heads * size)`."""
        heads = output.view(-1, self.num_kv_heads, self.group, self.head_size)
        mean = heads[:, :, 0].reshape(output.shape[0], -1)[:, : self.rank].float() if self.rank else None
        highest = heads[:, -1, -1, self.head_size - self.parts :].float().sum(-1) if self.highest else None
        return mean, highest


class CausalMemory(nn.Module):
    """Causal mean and running maximum of a sequence by one attention layer of the engine.

    The layer gets no cache configuration, so that it is neither windowed nor quantised where the model's own layers are.
    """

    def __init__(self, layout: Layout, prefix: str) -> None:
        super().__init__()
        from vllm.model_executor.layers.attention import Attention

        self.layout = layout
        self.attention = Attention(
            layout.num_heads, layout.head_size, scale=BETA, num_kv_heads=layout.num_kv_heads, cache_config=None, prefix=prefix
        )

    def forward(self, states: Tensor | None, value: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Append `(n, r)` states and `(n,)` values of the batch's tokens; their causal means and running maxima, float32."""
        return self.layout.read(self.attention(*self.layout.write(states, value)))
