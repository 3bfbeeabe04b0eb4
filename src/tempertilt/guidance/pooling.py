"""Causal pooling of hidden states, and its incremental state as one more layer of the model's cache.

"mean" pooling (the paper): `c_t = sum_{i <= t} m_i h_i / max(1, sum_{i <= t} m_i)` with `m` the attention mask.
"last" pooling: `c_t = h_t`, no state at all.

Pooling is linear, so the model pools `u_t = A h_t` (r numbers) instead of `h_t` (d numbers).
"""

from __future__ import annotations

import math

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from tempertilt.errors import TemperTiltError
from tempertilt.guidance.tilt import Pooling, check_pooling

try:
    from transformers.cache_utils import DummyLayer
except ImportError as error:
    raise TemperTiltError(
        f"running a model through transformers needs transformers 5.24 or later; this is {transformers.__version__}. An engine "
        "such as vLLM may hold it back: serve from an environment of its own, and make adapters in another"
    ) from error

__all__ = ["Pooling", "PoolingLayer", "causal_mean", "check_continues", "check_pooling", "pool", "pooling_layer", "scan"]


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


def pool(states: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
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


class PoolingLayer(DummyLayer):  # type: ignore[misc]
    """What the adapter remembers of every position, as one more layer of a transformers cache.

    Running sums of `u` (r numbers), the count of real tokens, and the highest evidence so far: what `scan` of whole sequences
    gives, continued. Being a cache layer, it is reordered with the beams, cropped after rejected drafts, repeated, selected and
    reset together with the keys and values. To the masks of the base model it is a dummy layer: it holds none of its keys.

    Args:
        max_length: number of positions to allocate at once, for static caches (all updates are then done in place, at
            addresses that don't change, as compiled decoding needs); None grows by doubling.
    """

    def __init__(self, max_length: int | None = None) -> None:
        super().__init__()
        self.max_length = max_length
        self.memory: Tensor | None = None  # (B, capacity, r + 2): sums, count, evidence
        self.length = 0  # positions held; unused when static
        self.position: Tensor | None = None  # the same as a tensor, when static

    def advance(self, states: Tensor, mask: Tensor | None, evidence: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Append `(B, n, r)` projected states, r may be 0, and evidence `(B, n)`.

        `mask` is `(B, n)`, 1 = real token, or None. Returns causal means `(B, n, r)` and highest evidence so far `(B, n)`.
        """
        new = _memory(states, mask, evidence)
        new = self._append_dynamic(new) if self.max_length is None else self._append_static(new)
        return _read(new)

    def _append_dynamic(self, new: Tensor) -> Tensor:
        n = new.shape[1]
        if self.memory is None:
            self.memory = _allocate(new, max(64, 2 * n))
        elif self.length:
            if self.memory.shape[0] != new.shape[0]:
                raise TemperTiltError(f"the cache holds {self.memory.shape[0]} sequences, the input has {new.shape[0]}")
            new = _continue(new, self.memory[:, self.length - 1 : self.length])
        if self.length + n > self.memory.shape[1]:
            grown = _allocate(new, 2 * (self.length + n))
            grown[:, : self.length] = self.memory[:, : self.length]
            self.memory = grown
        self.memory[:, self.length : self.length + n] = new.detach()
        self.length += n
        return new

    def _append_static(self, new: Tensor) -> Tensor:
        assert self.max_length is not None
        if self.memory is None or self.position is None:
            self.memory = _allocate(new, self.max_length)
            self.position = torch.zeros((), dtype=torch.long, device=new.device)
        capacity, n = self.max_length, new.shape[1]
        before = ((self.position - 1).clamp(min=0) % capacity).reshape(1)
        new = _continue(new, torch.where(self.position > 0, self.memory.index_select(1, before), _nothing(new)))
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


def scan(states: Tensor, mask: Tensor | None, evidence: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Causal means `(B, T, r)` and highest evidence so far `(B, T)` of whole sequences, float32; padding left out.

    Where there is no evidence (none given, or nothing but padding yet) it is minus infinity.
    """
    return _read(_memory(states, mask, evidence))


def _memory(states: Tensor, mask: Tensor | None, evidence: Tensor | None) -> Tensor:
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


def _continue(new: Tensor, last: Tensor) -> Tensor:
    """The memory of new positions `(B, n, w)` after that of the last old one `(B, 1, w)`."""
    return torch.cat([new[..., :-1] + last[..., :-1], new[..., -1:].maximum(last[..., -1:])], -1)


def _read(memory: Tensor) -> tuple[Tensor, Tensor]:
    return memory[..., :-2] / memory[..., -2:-1].clamp(min=1), memory[..., -1]


def _nothing(like: Tensor) -> Tensor:
    """The memory of no position, `(1, 1, w)`."""
    nothing = like.new_zeros(1, 1, like.shape[-1])
    nothing[..., -1] = -math.inf
    return nothing


def _allocate(like: Tensor, capacity: int) -> Tensor:
    return like.new_zeros(like.shape[0], capacity, like.shape[-1])


def check_continues(cache: Cache) -> None:
    """Check, before a pass, that the pooling layer has seen every position that the cache holds.

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


def pooling_layer(cache: Cache) -> PoolingLayer:
    """The pooling layer of a cache that the base model has just filled, added after the model's own on first use."""
    layer = _find(cache)
    if layer is None:
        # not Cache.get_max_length: layers that hold state-space states beside keys answer -1
        lengths = [layer.max_cache_len for layer in cache.layers if hasattr(layer, "max_cache_len")]
        layer = PoolingLayer(max(lengths) if lengths and cache.is_compileable else None)
        cache.layers.append(layer)
    return layer


def _find(cache: Cache) -> PoolingLayer | None:
    return next((layer for layer in cache.layers if isinstance(layer, PoolingLayer)), None)
