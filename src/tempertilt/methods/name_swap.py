"""NameSwap: what the model would say of somebody else (Liu et al., arXiv 2407.16997), at inference.

The paper builds a teacher: the name to forget is replaced in the context by other names, and in the prediction these are put
back; it averages over names and distils. Here the teacher itself answers questions that hold a name to forget. Other than
there:

- Names are swapped token by token, as tokens come: a word of a name for a word of another one, cut or repeated to the same
  number of tokens, so that positions agree and the cache goes on. The first token of a word is swapped before it is known how
  the word ends.
- In the prediction, the logits of these tokens change places.
- The other names are made up, not those of known people; questions without the name are the base's.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tempertilt.config.options import Options, option
from tempertilt.data.fictional import FAMILY, GIVEN
from tempertilt.environment import Clock
from tempertilt.errors import ConfigError
from tempertilt.methods.prompt_guardrail import subjects
from tempertilt.methods.prompts import Ids, PromptReader, real_rows
from tempertilt.methods.registry import register
from tempertilt.methods.routed import RoutedModel
from tempertilt.methods.steered import Pass
from tempertilt.methods.task import Method, Task, Unlearned


@dataclass(frozen=True)
class NameSwapConfig(Options):
    """Options of the swap."""

    names: tuple[str, ...] = option((), "names to forget; by default those that forget records have and retain ones have not")
    max_names: int = option(200, "names that are found, at most, the most frequent ones", ge=1)
    variants: int = option(3, "other names for each, whose predictions are averaged", ge=1)


class Swap(NamedTuple):
    """One set of other names.

    Attributes:
        words: token ids of each word to forget, with those that take their places, as many.
        pairs: `(2, m)` tokens that change places in the prediction; no token twice.
    """

    words: tuple[tuple[Ids, Ids], ...]
    pairs: Tensor

    @classmethod
    def of(cls, words: Sequence[tuple[Ids, Ids]]) -> Swap:
        """A swap of words; of tokens that are in several, the first one counts."""
        taken: set[int] = set()
        pairs = []
        for one, other in ((a, b) for word, instead in words for a, b in zip(word, instead)):
            if one != other and not {one, other} & taken:
                taken |= {one, other}
                pairs.append((one, other))
        return cls(tuple(words), torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T)

    def ids(self, ids: Sequence[int]) -> list[int]:
        """The tokens with the other names; each depends on those before it alone."""
        out: list[int] = []
        active: list[tuple[tuple[Ids, Ids], int]] = []
        for token in ids:
            going = [(word, at + 1) for word, at in active if word[0][at] == token]
            going += [(word, 1) for word in self.words if word[0][0] == token]
            best = max(going, key=lambda match: match[1], default=None)
            out.append(token if best is None else best[0][1][best[1] - 1])
            active = [(word, at) for word, at in going if at < len(word[0])]
        return out

    def logits(self, logits: Tensor) -> Tensor:
        """Logits `(..., V)` in which the tokens of the other names have changed places with those to forget."""
        one, other = self.pairs.to(logits.device)
        out = logits.clone()
        out[..., one], out[..., other] = logits[..., other], logits[..., one]
        return out


def swaps_of(names: Sequence[str], tokenizer: Any, variants: int, seed: int) -> list[Swap]:
    """Sets of made-up names for all names; a word has the same other one wherever it comes."""
    rng = random.Random(seed)
    swaps = []
    for _ in range(variants):
        words: dict[str, str] = {}
        for name in names:
            for place, word in enumerate(name.split()):
                words.setdefault(word, rng.choice(FAMILY if place else GIVEN))
        swaps.append(Swap.of([pair for word, other in words.items() for pair in _tokens(word, other, tokenizer)]))
    return swaps


def _tokens(word: str, other: str, tokenizer: Any) -> list[tuple[Ids, Ids]]:
    """Both words as tokens, behind a space and at the beginning of a text; the other one as long as the first."""
    pairs = []
    for space in (" ", ""):
        one, instead = (tuple(tokenizer(space + text, add_special_tokens=False)["input_ids"]) for text in (word, other))
        pairs.append((one, (instead * len(one))[: len(one)]))
    return pairs


class NameSwapModel(RoutedModel):
    """The base model, but questions with a name to forget are answered as if other names stood there."""

    def __init__(self, base: Any, tokenizer: Any, reader: PromptReader, names: Sequence[str], swaps: Sequence[Swap]) -> None:
        words = [list(swap.words) for swap in swaps]
        super().__init__(base, reader, {"method": "NameSwap", "names": list(names), "words": words})
        self.tokenizer, self.swaps = tokenizer, list(swaps)
        self.named = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names), re.IGNORECASE)

    def is_other(self, question: Ids) -> bool:
        """Whether it holds a name to forget."""
        return self.named.search(self.tokenizer.decode(list(question))) is not None

    def other(self, step: Pass) -> Tensor:
        """Logits of the mean, over variants, of the base's distribution after the other names, put back."""
        log_probs = []
        for number, swap in enumerate(self.swaps):
            tokens = step.tokens.clone()
            for row, (ids, where) in enumerate(real_rows(step.tokens, step.mask)):
                tokens[row, where] = torch.tensor(swap.ids(ids), device=tokens.device)
            logits = step.logits(self.base, f"swap {number}", input_ids=tokens[:, -step.new :])
            log_probs.append(swap.logits(logits).log_softmax(-1))
        return torch.stack(log_probs).logsumexp(0)


@register("NameSwap", "https://arxiv.org/abs/2407.16997", NameSwapConfig)
class NameSwap(Method):
    """Questions with a name to forget are answered as if other names stood there."""

    def unlearn(self, task: Task) -> Unlearned:
        """Find the names and make up others."""
        clock, config, tokenizer = Clock(), self.config, task.base.tokenizer
        with clock("reference"):
            names = list(config.names) or subjects(task.forget, task.retain, config.max_names)
            if not names:
                raise ConfigError("no names are in the forget records and not in the retain records; must be named, by names")
            swaps = swaps_of(names, tokenizer, config.variants, task.seed)
        reader = PromptReader(tokenizer, task.examples)
        model = NameSwapModel(task.base.model, tokenizer, reader, names, swaps)
        return Unlearned(
            model=model,
            seconds=clock.seconds,
            artefact_bytes=len(json.dumps(model.settings).encode()),
            details={"names": len(names), "words": len(swaps[0].words)},
        )
