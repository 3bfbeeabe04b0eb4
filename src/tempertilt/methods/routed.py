"""Two models behind one: each question goes to one of them as a whole."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tempertilt.errors import TemperTiltError
from tempertilt.methods.prompts import Ids, PromptReader, real_rows
from tempertilt.methods.steered import Pass, SteeredLM


class RoutedModel(SteeredLM):
    """The base model, but for some questions, which another model answers.

    While a question goes on both run; once every question of a batch is known to be the base's, the other one rests.
    """

    def __init__(self, base: Any, reader: PromptReader, settings: dict[str, Any]) -> None:
        super().__init__(base, settings)
        self.reader = reader

    @abstractmethod
    def is_other(self, question: Ids) -> bool:
        """Whether the other model answers this question."""

    @abstractmethod
    def other(self, step: Pass) -> Tensor:
        """The other model's logits at the kept positions."""

    def steer(self, logits: Tensor, step: Pass) -> Tensor:
        """Logits of the base or of the other model, by question; of the base while the question goes on."""
        routes = [self._route(ids) for ids, _ in real_rows(step.tokens, step.mask)]
        if not any(route is None or route[0] for route in routes):
            return logits
        if step.side is not None and _seen(step.side) != step.side.length - step.new:
            raise TemperTiltError("another sequence has joined the batch after its questions were read: start with a new cache")
        starts = torch.tensor([route[1] if route and route[0] else -1 for route in routes], device=logits.device)
        place = step.mask.long().cumsum(1)[:, -step.new :]  # of the token that each new position predicts, among the real ones
        switched = step.kept((starts[:, None] >= 0) & (place >= starts[:, None]))
        return self.other(step).where(switched.unsqueeze(-1), logits)

    def _route(self, ids: Sequence[int]) -> tuple[bool, int] | None:
        """Whether the other model answers and the place of the answer's first token; None while the question goes on."""
        found = self.reader.read(ids)
        return None if found is None else (self.is_other(found[0]), found[1])


def _seen(side: Any) -> int:
    """Positions that the other model has seen."""
    return max((int(cache.get_seq_length()) for cache in side.caches.values()), default=0)
