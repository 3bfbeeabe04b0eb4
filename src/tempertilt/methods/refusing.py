"""Models that go over to a refusal: what the filters of prompts and of answers share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tempertilt.config.options import Options, option
from tempertilt.errors import ConfigError
from tempertilt.methods.prompts import real_rows
from tempertilt.methods.steered import Pass, SteeredLM


def refusal_logits(like: Tensor, tokens: Tensor, smoothing: float) -> Tensor:
    """Logits `(N, V)` of distributions that give 1 - smoothing to `tokens (N,)` and share the rest among all others.

    A text that the guardrail never lets through is as unlikely as any other of its length; its likelihood is a number.
    """
    rest = math.log(smoothing / (like.shape[-1] - 1))
    return torch.full_like(like, rest).scatter(-1, tokens[:, None], math.log1p(-smoothing))


class RefusingModel(SteeredLM):
    """From some position of a sequence on, the tokens of a refusal and nothing else."""

    def __init__(self, base: Any, refusal: Sequence[int], settings: dict[str, Any]) -> None:
        super().__init__(base, settings | {"refusal": list(refusal)})
        self.refusal = list(refusal)

    @abstractmethod
    def starts(self, ids: Sequence[int]) -> int | None:
        """The place in a sequence that the refusal's first token takes, None if there is none yet."""

    def steer(self, logits: Tensor, step: Pass) -> Tensor:
        """The base's distribution before the refusal starts, the refusal's after."""
        total = step.tokens.shape[1]
        forced = torch.full(step.tokens.shape, -1, dtype=torch.long, device=logits.device)
        for row, (ids, where) in enumerate(real_rows(step.tokens, step.mask)):
            start = self.starts(ids)
            for i in range(len(ids)) if start is not None else ():
                if i + 1 >= start:  # type: ignore[operator]
                    forced[row, where[i]] = self.refusal[min(i + 1 - start, len(self.refusal) - 1)]  # type: ignore[operator]
        kept = step.kept(forced[:, total - step.new :])
        flat, tokens = logits.reshape(-1, logits.shape[-1]), kept.reshape(-1)
        chosen = (tokens >= 0).nonzero().squeeze(-1)
        out = flat.clone()
        out[chosen] = refusal_logits(flat[chosen], tokens[chosen], self.settings["smoothing"])
        return out.reshape(logits.shape)


@dataclass(frozen=True)
class FilterConfig(Options):
    """Options that filters share."""

    refusal: str = option("I don't know.", "what is said instead")
    smoothing: float = option(1e-3, "probability that the refusal leaves to all other tokens", gt=0, lt=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.refusal.strip():
            raise ConfigError(f"refusal is {self.refusal!r}; must not be empty")


def refusal_ids(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a refusal, with the end of the sequence."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]
