"""What an adapter remembers of a sequence, as one more layer of the model's cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from tempertilt.errors import TemperTiltError
from tempertilt.guidance.pooling import Follow, Memory, continue_rows, follow_replies, memory_rows, read_memory
from tempertilt.guidance.reply import FORMS

try:
    from transformers.cache_utils import DummyLayer
except ImportError as error:
    raise TemperTiltError(
        f"running a model through transformers needs transformers 5.24 or later; this is {transformers.__version__}. An engine "
        "such as vLLM may hold it back: serve from an environment of its own, and make adapters in another"
    ) from error


class MemoryLayer(DummyLayer):  # type: ignore[misc]
    """What the adapter remembers of every position, as one more layer of a transformers cache.

    The rows of `tempertilt.guidance.pooling`: what `scan` of whole sequences gives, continued. Being a cache layer, it is
    reordered with the beams, cropped after rejected drafts, repeated, selected and reset together with the keys and values. To
    the masks of the base model it is a dummy layer: it holds none of its keys.

    Args:
        max_length: number of positions to allocate at once, for static caches (all updates are then done in place, at
            addresses that don't change, as compiled decoding needs); None grows by doubling.
    """

    def __init__(self, max_length: int | None = None) -> None:
        super().__init__()
        self.max_length = max_length
        self.memory: Tensor | None = None  # (B, capacity, r + 1 + k), and 2 more for each reply
        self.length = 0  # positions held; unused when static
        self.position: Tensor | None = None  # the same as a tensor, when static

    def advance(
        self, states: Tensor, mask: Tensor | None, events: Tensor | None = None, follows: Sequence[Follow] = ()
    ) -> Memory:
        """Append `(B, n, r)` projected states, r may be 0, and events `(B, n, k)` bool; the memory after each.

        `mask` is `(B, n)`, 1 = real token, or None; `follows` count the tokens of replies, the same in every call.
        """
        new, rank = memory_rows(states, mask, events), states.shape[-1]
        new = self._append_dynamic(new, rank, follows) if self.max_length is None else self._append_static(new, rank, follows)
        return read_memory(new, rank, len(follows))

    def _append_dynamic(self, new: Tensor, rank: int, follows: Sequence[Follow]) -> Tensor:
        n, last = new.shape[1], None
        if self.memory is not None and self.length:
            if self.memory.shape[0] != new.shape[0]:
                raise TemperTiltError(f"the cache holds {self.memory.shape[0]} sequences, the input has {new.shape[0]}")
            if self.memory.shape[2] != new.shape[2] + FORMS * len(follows):
                raise TemperTiltError("the cache was filled under other parts or replies; start with a new cache")
            last = self.memory[:, self.length - 1 : self.length]
            new = continue_rows(new, last, rank)
        new = follow_replies(new, last, rank, follows)
        if self.memory is None:
            self.memory = new.new_zeros(new.shape[0], max(64, 2 * n), new.shape[2])
        if torch.is_grad_enabled() and new.requires_grad:  # what an earlier pass saved for its gradients must not change
            self.memory = torch.cat([self.memory[:, : self.length], new], 1)
            self.length += n
            return new
        if self.length + n > self.memory.shape[1]:
            grown = new.new_zeros(new.shape[0], 2 * (self.length + n), new.shape[2])
            grown[:, : self.length] = self.memory[:, : self.length]
            self.memory = grown
        self.memory[:, self.length : self.length + n] = new.detach()
        self.length += n
        return new

    def _append_static(self, new: Tensor, rank: int, follows: Sequence[Follow]) -> Tensor:
        assert self.max_length is not None
        if self.memory is None or self.position is None:
            width = new.shape[2] + FORMS * len(follows)
            self.memory = new.new_zeros(new.shape[0], self.max_length, width)
            self.position = torch.zeros((), dtype=torch.long, device=new.device)
        capacity, n = self.max_length, new.shape[1]
        before = ((self.position - 1).clamp(min=0) % capacity).reshape(1)
        last = self.memory.index_select(1, before) * (self.position > 0)
        new = follow_replies(continue_rows(new, last, rank), last, rank, follows)
        kept = min(n, capacity)  # a cache of sliding windows is shorter than the text: old positions are written over
        where = (torch.arange(n - kept, n, device=new.device) + self.position) % capacity
        self.memory.index_copy_(1, where, new[:, n - kept :].detach())
        self.position.add_(n)
        return new

    def reset(self) -> None:
        """Forget every position."""
        self.length = 0
        if self.position is not None:
            self.position.zero_()

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `abs(tokens_to_remove)` positions (transformers passes the number negated)."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the number of tokens to remove; got {tokens_to_remove}")
        if self.position is not None:
            self.position.add_(tokens_to_remove).clamp_(min=0)
        self.length = max(0, self.length + tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the sequences in the order of `beam_idx (B,)`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times."""
        if self.memory is not None:
            self.memory = self.memory.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences at `indices`."""
        if self.memory is not None:
            self.memory = self.memory[indices.to(self.memory.device)]

    def merge_rows(self, others: Sequence[MemoryLayer]) -> None:
        """Append the sequences of other layers that grow; every shorter sequence is padded on the left, as unseen positions."""
        layers = [self, *others]
        length = max(layer.length for layer in layers)
        memories = [layer.memory[:, : layer.length] for layer in layers if layer.memory is not None]
        padded = [torch.nn.functional.pad(memory, (0, 0, length - memory.shape[1], 0)) for memory in memories]
        self.memory, self.length = torch.cat(padded), length

    def keep_last(self, length: int) -> None:
        """Drop the first positions so that `length` are left."""
        if self.memory is not None:
            self.memory, self.length = self.memory[:, self.length - length :], length


def check_continues(cache: Cache) -> None:
    """Check, before a pass, that the memory layer has seen every position that the cache holds.

    Raises:
        TemperTiltError: the cache was filled by the base model alone, or while the adapter was disabled.
    """
    layer = _find(cache)
    if layer is not None and layer.max_length is not None:
        return  # its position is a tensor on the device: comparing it would stall every step
    seen = 0 if layer is None else layer.length
    held = _positions_held(cache, seen)
    if held != seen:
        raise TemperTiltError(
            f"this cache holds {held} positions, of which the adapter has seen {seen}: it was filled by the base "
            "model alone, or while the adapter was disabled. Start with a new cache."
        )


def _positions_held(cache: Cache, seen: int) -> int | str:
    """Positions in the model's own layers; state-space layers know only whether they hold any."""
    layers = [layer for layer in cache.layers if isinstance(layer, CacheLayerMixin)]
    if layers:
        return int(layers[0].get_seq_length())
    states = [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    filled = any(any(layer.has_previous_state.values()) for layer in states)
    return (seen or "some") if filled else 0


def memory_layer(cache: Cache) -> MemoryLayer:
    """The memory layer of a cache that the base model has just filled, added after the model's own on first use."""
    layer = _find(cache)
    if layer is None:
        # not Cache.get_max_length: layers that hold state-space states beside keys answer -1
        lengths = [layer.max_cache_len for layer in cache.layers if hasattr(layer, "max_cache_len")]
        layer = MemoryLayer(max(lengths) if lengths and cache.is_compileable else None)
        cache.layers.append(layer)
    return layer


def _find(cache: Cache) -> MemoryLayer | None:
    return next((layer for layer in cache.layers if isinstance(layer, MemoryLayer)), None)


# --- caches row by row ----------------------------------------------------------------------------------------------------

MERGEABLE = (
    DummyLayer,
    MemoryLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)
"""Layers whose sequences are rows of tensors that can be put under each other; exactly these classes, no subclasses."""


def can_merge(cache: Cache) -> bool:
    """Whether `merge_caches` and `keep_rows` know all layers of a cache."""
    return all(type(layer) in MERGEABLE for layer in cache.layers)


def has_states(cache: Cache) -> bool:
    """Whether a cache holds state-space or convolution states, which padding on the left and long continuations change."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def merge_caches(caches: Sequence[Cache]) -> Cache:
    """One cache with the sequences of several, in their order.

    Args:
        caches: of one model, filled, for which `can_merge` holds. They are used up.

    Returns:
        The first cache. It is as long as the longest: shorter sequences are padded on the left, with keys and values of 0 that
        the attention mask of later passes must hide.
    """
    merged = caches[0]
    for layers in zip(*(cache.layers for cache in caches)):
        _merge_layers(layers)
    return merged


def _merge_layers(layers: Sequence[Any]) -> None:
    """Put the rows of all layers into the first."""
    first = layers[0]
    if isinstance(first, MemoryLayer):
        first.merge_rows(layers[1:])
    if isinstance(first, LinearAttentionLayer):
        for states in ("conv_states", "recurrent_states"):
            parts = [getattr(layer, states) for layer in layers]
            setattr(first, states, {i: None if parts[0][i] is None else torch.cat([part[i] for part in parts]) for i in parts[0]})
    if isinstance(first, DynamicLayer) and first.is_initialized:
        first.keys = _pad_and_join([layer.keys for layer in layers])
        first.values = _pad_and_join([layer.values for layer in layers])
    if isinstance(first, DynamicSlidingWindowLayer):
        first.cumulative_length = max(layer.cumulative_length for layer in layers)


def _pad_and_join(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors `(B_i, heads, T_i, d)`, zeros put before, as one `(sum of B_i, heads, longest T_i, d)`."""
    longest = max(tensor.shape[2] for tensor in tensors)
    return torch.cat([torch.nn.functional.pad(tensor, (0, 0, longest - tensor.shape[2], 0)) for tensor in tensors])


class Prefix:
    """Keys, values and memory of the first positions of one sequence, to begin others with.

    Attributes:
        length: positions.
        layers: of each layer its keys and values `(1, heads, length, d)`.
        memory: rows `(1, length, w)` of the adapter's layer; None without one.
    """

    def __init__(self, length: int, layers: list[tuple[Tensor, Tensor]], memory: Tensor | None) -> None:
        self.length, self.layers, self.memory = length, layers, memory


def can_share(cache: Cache) -> bool:
    """Whether `copy_prefix` and `begin_with` know all layers of a cache: those that keep keys and values of every position."""
    return all(type(layer) in (DynamicLayer, MemoryLayer) for layer in cache.layers)


def copy_prefix(cache: Cache, row: int, start: int, length: int) -> Prefix:
    """A copy of so many positions from `start` on of a sequence in a cache for which `can_share` holds."""
    stop, memory, layers = start + length, None, []
    for layer in cache.layers:
        if isinstance(layer, MemoryLayer):
            assert layer.memory is not None, "the cache was filled"
            memory = layer.memory[row : row + 1, start:stop].clone()
        else:
            both = (tensor[row : row + 1, :, start:stop].clone() for tensor in (layer.keys, layer.values))
            layers.append((next(both), next(both)))
    return Prefix(length, layers, memory)


def begin_with(cache: Cache, parts: Sequence[Prefix], lengths: Sequence[int]) -> None:
    """Fill an empty cache with the first `lengths` positions of parts, a row each, shorter ones padded on the left."""
    longest = max(lengths)
    for i in range(len(parts[0].layers)):
        sides = ([part.layers[i][side][:, :, :n] for part, n in zip(parts, lengths)] for side in (0, 1))
        keys, values = (_pad_and_join(tensors) for tensors in sides)
        cache.update(keys, values, i)
    if parts[0].memory is not None:
        rows = [part.memory[:, :n] for part, n in zip(parts, lengths) if part.memory is not None]
        layer = memory_layer(cache)
        layer.memory = torch.cat([torch.nn.functional.pad(row, (0, 0, longest - row.shape[1], 0)) for row in rows])
        layer.length = longest


def keep_rows(cache: Cache, rows: Tensor, length: int) -> None:
    """Drop sequences and the padding that they leave.

    Args:
        cache: for which `can_merge` holds.
        rows: indices `(K,)` of the sequences to keep.
        length: positions to keep, counted from the end: as many as the longest of these sequences has.
    """
    for layer in cache.layers:
        if isinstance(layer, MemoryLayer):
            layer.keep_last(length)
        if isinstance(layer, DynamicLayer) and layer.is_initialized:
            layer.keys, layer.values = layer.keys[:, :, -length:], layer.values[:, :, -length:]
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = length
    cache.reorder_cache(rows)
