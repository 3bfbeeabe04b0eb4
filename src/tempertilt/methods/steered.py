"""A frozen causal LM that a method steers while it decodes: what all inference-time methods share.

The state of a method (caches of further models, the tokens so far) is one more layer of the transformers cache, so it is
reordered with beams, cropped after rejected drafts, repeated and branched together with the keys and values.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DummyLayer, DynamicCache

from tempertilt.errors import TemperTiltError
from tempertilt.models.frozen import BasePass, FrozenLM


class SideState(DummyLayer):  # type: ignore[misc]
    """What a method keeps beside the keys and values of the base model.

    Attributes:
        tokens, mask: `(B, T)` ids so far and which of them are real, None before the first.
        caches: of further models, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens: Tensor | None = None
        self.mask: Tensor | None = None
        self.caches: dict[str, Cache] = {}

    def __copy__(self) -> SideState:
        """A state of its own over the same tensors, which are replaced and never written to."""
        other = SideState()
        other.tokens, other.mask = self.tokens, self.mask
        for name, cache in self.caches.items():
            other.caches[name] = copy.copy(cache)
            other.caches[name].layers = [copy.copy(layer) for layer in cache.layers]
        return other

    @property
    def length(self) -> int:
        """Positions held."""
        return 0 if self.tokens is None else int(self.tokens.shape[1])

    def extend(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Append `(B, n)` tokens and their mask; return all."""
        self.tokens = tokens if self.tokens is None else torch.cat([self.tokens, tokens], 1)
        self.mask = mask if self.mask is None else torch.cat([self.mask, mask], 1)
        return self.tokens, self.mask

    def cache(self, name: str, config: Any) -> Cache:
        """The cache of a further model, made on first use."""
        return self.caches.setdefault(name, DynamicCache(config=config))

    def reset(self) -> None:
        """Forget every position."""
        self.tokens = self.mask = None
        self.caches = {}

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `abs(tokens_to_remove)` positions (transformers passes the number negated)."""
        if tokens_to_remove and self.tokens is not None and self.mask is not None:
            self.tokens, self.mask = self.tokens[:, :tokens_to_remove], self.mask[:, :tokens_to_remove]
            for cache in self.caches.values():
                for layer in cache.layers:
                    layer.crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the sequences in the order of `beam_idx (B,)`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times."""
        if self.tokens is not None and self.mask is not None:
            self.tokens, self.mask = (of.repeat_interleave(repeats, 0) for of in (self.tokens, self.mask))
            for cache in self.caches.values():
                cache.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences at `indices`."""
        if self.tokens is not None and self.mask is not None:
            indices = indices.to(self.tokens.device)
            self.tokens, self.mask = self.tokens[indices], self.mask[indices]
            for cache in self.caches.values():
                cache.batch_select_indices(indices)


@dataclass(frozen=True)
class Pass:
    """One forward pass of the base model, as a method sees it.

    Attributes:
        base: the pass.
        tokens, mask: `(B, T)` all tokens so far, and which are real; the last `new` are new.
        side: the state, None where nothing is cached.
    """

    base: BasePass
    tokens: Tensor
    mask: Tensor
    new: int
    side: SideState | None

    def logits(self, model: Any, name: str, **other_inputs: Any) -> Tensor:
        """Logits of a further model at the kept positions; its cache goes by `name`.

        `other_inputs` take the place of the base's: a model may read other embeddings.
        """
        inputs = self.base.inputs | other_inputs
        if "inputs_embeds" in other_inputs:
            inputs.pop("input_ids")
        if not isinstance(self.base.keep, int) or self.base.keep:
            inputs["logits_to_keep"] = self.base.keep
        inputs |= {"use_cache": False} if self.side is None else {"use_cache": True, "cache": self.side.cache(name, model.config)}
        return model(**inputs).logits.float()  # type: ignore[no-any-return]

    def kept(self, values: Tensor) -> Tensor:
        """Of `(B, n, ...)` values at the new positions those whose logits are kept, shaped as the logits are."""
        return self.base.kept(values)


class SteeredLM(FrozenLM):
    """A frozen causal LM and a method that changes its logits; full `generate`, its state kept in the cache.

    Args:
        base: the frozen causal LM.
        settings: what else than weights decides the output, JSON-ready.
    """

    def __init__(self, base: Any, settings: dict[str, Any]) -> None:
        super().__init__(base)
        self._settings = settings

    @property
    def settings(self) -> dict[str, Any]:
        """What else than weights decides the output."""
        return self._settings

    @abstractmethod
    def steer(self, logits: Tensor, step: Pass) -> Tensor:
        """The method's logits from the base's, float32, `(B, kept, V)` or `(N, V)`."""

    def check_cache(self, cache: Any) -> None:
        """Raise `TemperTiltError` for a cache that holds positions which the method has not seen."""
        side = _side_state(cache)
        held = int(cache.get_seq_length()) if len(cache.layers) else 0
        known = 0 if side is None else side.length
        if held != known:
            raise TemperTiltError(
                f"this cache holds {held} positions, of which the method has seen {known}: it was filled by the base model "
                "alone, or while the method was disabled. Start with a new cache."
            )

    def new_logits(self, logits: Tensor, step: BasePass) -> Tensor:
        """What the method makes of the base's logits, after its state has the new tokens."""
        tokens = step.inputs.get("input_ids")
        if tokens is None:
            raise TemperTiltError(f"{type(self).__name__} reads tokens: pass input_ids, not inputs_embeds")
        side = _joined(step.cache)
        mask = torch.ones_like(tokens) if step.mask is None else step.mask
        every, masks = (tokens, mask) if side is None else side.extend(tokens, mask)
        return self.steer(logits.float(), Pass(step, every, masks, tokens.shape[1], side))


def _side_state(cache: Any) -> SideState | None:
    """The state in a cache."""
    return next((layer for layer in cache.layers if isinstance(layer, SideState)), None)


def _joined(cache: Any) -> SideState | None:
    """The state in a cache that the base has just filled, added on first use; None without a cache."""
    if not isinstance(cache, Cache):
        return None
    side = _side_state(cache)
    if side is None:
        side = SideState()
        cache.layers.append(side)
    return side
