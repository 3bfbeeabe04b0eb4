"""A frozen causal LM whose next-token law is changed while it decodes: what all inference-time methods share.

The state of a method (caches of further models, the tokens so far) is one more layer of the transformers cache, so it is
reordered with beams, cropped after rejected drafts, repeated and branched together with the keys and values.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DummyLayer, DynamicCache
from transformers.modeling_utils import slice_logits_to_keep

from tempertilt.errors import TemperTiltError
from tempertilt.models.t3 import FROM_BASE, T3ForCausalLM


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
        inputs: what the base was given, but for cache and logits_to_keep: the same goes to further models.
        tokens, mask: `(B, T)` all tokens so far, and which are real; the last `n` are new.
        new: `n`.
        keep: logits_to_keep.
        side: the state, None where nothing is cached.
    """

    inputs: dict[str, Any]
    tokens: Tensor
    mask: Tensor
    new: int
    keep: int | Tensor
    side: SideState | None

    def logits(self, model: Any, name: str, **other_inputs: Any) -> Tensor:
        """Logits of a further model at the kept positions; its cache goes by `name`.

        `other_inputs` take the place of the base's: a model may read other embeddings.
        """
        inputs = self.inputs | other_inputs
        if "inputs_embeds" in other_inputs:
            inputs.pop("input_ids")
        if not isinstance(self.keep, int) or self.keep:
            inputs["logits_to_keep"] = self.keep
        inputs |= {"use_cache": False} if self.side is None else {"use_cache": True, "cache": self.side.cache(name, model.config)}
        return model(**inputs).logits.float()  # type: ignore[no-any-return]

    def kept(self, values: Tensor) -> Tensor:
        """Of `(B, n, ...)` values at the new positions those whose logits are kept, shaped as the logits are."""
        flat = values.ndim == 2
        out: Tensor = slice_logits_to_keep(values.unsqueeze(-1) if flat else values, self.keep)
        return out.squeeze(-1) if flat else out


class SteeredLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A frozen causal LM and a method that changes its logits; full `generate`, its state kept in the cache.

    Attributes:
        base: the frozen causal LM; inside `disable()` its logits come out as they are.
        settings: what else than weights decides the output, JSON-ready; it is part of the model's digest.
    """

    base_model_prefix = "base"

    def __init__(self, base: Any, settings: dict[str, Any]) -> None:
        super().__init__(base.config)
        self.base = base
        self.settings = settings
        self.generation_config = base.generation_config
        for name in FROM_BASE:
            setattr(self, name, getattr(base, name))
        self._disabled = False

    @abstractmethod
    def steer(self, logits: Tensor, step: Pass) -> Tensor:
        """The method's logits from the base's, float32, `(B, kept, V)` or `(N, V)`."""

    @contextmanager
    def disable(self) -> Iterator[None]:
        """Inside, the model is its base model. Caches filled inside can't be continued outside, or the other way round."""
        before, self._disabled = self._disabled, True
        try:
            yield
        finally:
            self._disabled = before

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        pooling_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's output with the method's logits, and with `labels` the loss under them.

        Args:
            input_ids, attention_mask, position_ids, cache, use_cache, logits_to_keep, kwargs: as for the base.
            labels: `(B, T)`, -100 = not scored.
            pooling_mask: `(B, n)` of the new tokens, 1 = real.

        Raises:
            TemperTiltError: there are embeddings in the place of tokens, the mask is not 2-dimensional, or the cache was filled
                without the method.
        """
        shared = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids} | kwargs
        shared = {name: value for name, value in shared.items() if value is not None}
        given = {name: value for name, value in (("cache", cache), ("use_cache", use_cache)) if value is not None}
        if not isinstance(logits_to_keep, int) or logits_to_keep:
            given["logits_to_keep"] = logits_to_keep
        if self._disabled:
            output = self.base(**shared, **given, **({} if labels is None else {"labels": labels}))
            return output if return_dict is not False else output.to_tuple()
        if input_ids is None:
            raise TemperTiltError(f"{type(self).__name__} reads tokens: pass input_ids, not inputs_embeds")
        mask = self._new_mask(input_ids, attention_mask, pooling_mask)
        side = _side_state(cache)
        output = self.base(**shared, **given)
        side = self._joined(side, getattr(output, "cache", None))
        tokens, masks = (input_ids, mask) if side is None else side.extend(input_ids, mask)
        step = Pass(shared, tokens, masks, input_ids.shape[1], logits_to_keep, side)
        output.logits = self.steer(output.logits.float(), step)
        if labels is not None:
            vocabulary = self.config.get_text_config().vocab_size
            output.loss = self.base.loss_function(logits=output.logits, labels=labels, vocab_size=vocabulary)
        return output if return_dict is not False else output.to_tuple()

    @staticmethod
    def _new_mask(input_ids: Tensor, attention_mask: Any, pooling_mask: Tensor | None) -> Tensor:
        mask = attention_mask if pooling_mask is None else pooling_mask
        if mask is None:
            return torch.ones_like(input_ids)
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            raise TemperTiltError("the attention mask is not (batch, positions); static caches are not there for this method")
        return mask[:, -input_ids.shape[1] :]

    @staticmethod
    def _joined(side: SideState | None, cache: Any) -> SideState | None:
        """The state in a cache that the base has just filled, added on first use."""
        if not isinstance(cache, Cache):
            return None
        if side is None:
            side = SideState()
            cache.layers.append(side)
        return side

    # --- what `generate` asks of a model: all of it is the base's ---------------------------------------------------------

    prepare_inputs_for_generation = T3ForCausalLM.prepare_inputs_for_generation
    _update_model_kwargs_for_generation = T3ForCausalLM._update_model_kwargs_for_generation
    _supports_default_dynamic_cache = T3ForCausalLM._supports_default_dynamic_cache
    _supports_logits_to_keep = T3ForCausalLM._supports_logits_to_keep
    _check_and_adjust_attn_implementation = T3ForCausalLM._check_and_adjust_attn_implementation
    _check_and_adjust_experts_implementation = T3ForCausalLM._check_and_adjust_experts_implementation
    get_input_embeddings = T3ForCausalLM.get_input_embeddings
    get_output_embeddings = T3ForCausalLM.get_output_embeddings


def _side_state(cache: Any) -> SideState | None:
    """The state in a cache before a pass; `TemperTiltError` if the cache holds positions that the method has not seen."""
    if not isinstance(cache, Cache):
        return None
    side = next((layer for layer in cache.layers if isinstance(layer, SideState)), None)
    held = int(cache.get_seq_length()) if len(cache.layers) else 0
    seen = 0 if side is None else side.length
    if held != seen:
        raise TemperTiltError(
            f"this cache holds {held} positions, of which the method has seen {seen}: it was filled by the base model alone, or "
            "while the method was disabled. Start with a new cache."
        )
    return side
