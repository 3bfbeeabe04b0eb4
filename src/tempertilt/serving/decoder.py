"""What the engine decodes with: a served model, its caches, and the settings of its tilt."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from tempertilt.models.cache import can_merge, can_share, has_states
from tempertilt.serving.sampling import Token, token_of

SCORED_AT_ONCE = 256  # prompt positions whose logits are held at a time


class Tilt(NamedTuple):
    """Settings of the tilt that a request chose; None is the adapter's."""

    temperature: float | None = None
    guidance_scale: float | None = None


NO_TILT = Tilt()


@dataclass(frozen=True)
class Distribution:
    """A next-token distribution: a served model by name, and settings of its tilt."""

    model: str
    tilt: Tilt = NO_TILT


class Decoder:
    """A served model as the engine uses it.

    Args:
        model: an unlearned model, or a plain causal LM.
        tokenizer: to decode with, on the engine's thread only.
        stops: tokens that end an answer.

    Attributes:
        merges: whether answers can join and leave a batch. Caches of unusual layers, or none at all, hold one answer.
        pads: whether a prompt that is padded on the left gives the numbers of the prompt alone; state-space models do not.
        shares: whether what a prompt begins with can be taken from an earlier one: the cache keeps every position, as it was.
        steady_length: tokens of a sequence up to which its positions do not depend on its length; None is any number.
        takes_positions: whether `position_ids` are an input.
        keeps_logits: whether `logits_to_keep` is an input.
    """

    def __init__(self, model: Any, tokenizer: Any, stops: frozenset[int]) -> None:
        self.model, self.tokenizer, self.stops = model, tokenizer, stops
        config = model.config.get_text_config()
        self._caches = bool(model._supports_default_dynamic_cache())
        cache = DynamicCache(config=config)
        self.merges = self._caches and can_merge(cache)
        self.pads = self.merges and not has_states(cache)
        self.steady_length = _steady_length(config)
        self.shares = self.pads and self.steady_length is None and can_share(cache)
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self.keeps_logits = bool(model._supports_logits_to_keep())

    def new_cache(self) -> DynamicCache | None:
        """An empty cache; None if the model has another kind, so that every pass reads the whole sequence."""
        return DynamicCache(config=self.model.config.get_text_config()) if self._caches else None

    @contextmanager
    def under(self, tilt: Tilt) -> Iterator[None]:
        """Inside, the model has the settings of `tilt`."""
        if tilt == NO_TILT:
            yield
            return
        given = {name: value for name, value in tilt._asdict().items() if value is not None}
        with self.model.tilted(replace(self.model.tilt, **given)):
            yield

    def score(self, prompt: Sequence[int], alternatives: int) -> list[Token]:
        """The tokens of a prompt with their log-probabilities in the model's distribution; the first has none.

        Args:
            prompt: token ids.
            alternatives: likeliest other tokens to give at each position.
        """
        ids = torch.tensor([list(prompt)], device=self.model.device)
        cache, read = self.new_cache(), len(prompt) - 1
        tokens = [Token(prompt[0])]
        in_parts = self.pads and read <= (self.steady_length or read)
        step = SCORED_AT_ONCE if in_parts else max(1, read)  # states can't be continued by several tokens at a time
        for start in range(0, read, step):
            stop = min(start + step, read)
            mask = torch.ones_like(ids[:, :stop])
            options = {"cache": cache, "use_cache": True} if in_parts else {"use_cache": False}
            logits = self.model(input_ids=ids[:, start:stop], attention_mask=mask, **options).logits[0]
            rows = (torch.log_softmax(row.float(), -1) for row in logits)
            tokens += [token_of(row, prompt[start + i + 1], alternatives) for i, row in enumerate(rows)]
        return tokens


def _steady_length(config: Any) -> int | None:
    """Where rotary positions change with the length of the longest sequence: LongRoPE's original length, NTK's maximum."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *(part for part in parameters.values() if isinstance(part, dict))):
        if rope.get("rope_type") in ("longrope", "dynamic"):
            return int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    return None
