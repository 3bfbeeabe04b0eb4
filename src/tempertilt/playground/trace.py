"""The trace of a generation: at every step the base's law, the tempered law, the tilted law, and what the head and gate say.

    base      softmax z
    tempered  softmax z / (1 + (T - 1) g)
    tilted    softmax [ z / (1 + (T - 1) g) + s g w(l) ]        g = 1 without a gate; see `tempertilt.guidance.tilt`

Nothing here knows of a user interface.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tempertilt.errors import ConfigError
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.generation import stop_ids
from tempertilt.models.t3 import NextTerms, T3ForCausalLM

Law = Literal["base", "tilted"]

ROWS = 32  # laws computed at a time, so that a long draft does not fill the memory
CONTEXT = 8  # tokens before one that decide how it is spelt


@dataclass(frozen=True)
class Candidate:
    """A token that may come next.

    Attributes:
        token_id: in the vocabulary.
        text: what it adds to the text before it; U+FFFD where it is a part of a character.
        base, tempered, tilted: its probability under the three laws.
        log_odds: of retain, nats; None where the head has no row for the token: no evidence.
    """

    token_id: int
    text: str
    base: float
    tempered: float
    tilted: float
    log_odds: float | None

    @property
    def retain(self) -> float | None:
        """P(retain) under the classifier, its prior balanced."""
        return None if self.log_odds is None else float(torch.sigmoid(torch.tensor(self.log_odds, dtype=torch.float64)))


@dataclass(frozen=True)
class Step:
    """One step of a generation.

    Attributes:
        chosen: the token that was taken.
        candidates: the likeliest of the base and the likeliest of the tilted law, by probability under the base.
        openness: of the gate, in [0, 1]; 1 without a gate. At 0 the three laws are one.
        ends: whether the chosen token ends the answer.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    openness: float
    ends: bool

    @property
    def turned(self) -> bool:
        """Whether the likeliest token of the tilted law is another than the base's."""
        before = max(self.candidates, key=lambda candidate: candidate.base)
        return max(self.candidates, key=lambda candidate: candidate.tilted).tilted > before.tilted


@dataclass(frozen=True)
class PromptToken:
    """A token that the model reads before it answers.

    Attributes:
        text: what it adds to the text before it.
        special: whether it is one of the tokenizer's special tokens.
        evidence: of the token by itself; None without a gate.
        openness: of the gate after it; None without a gate.
    """

    text: str
    special: bool
    evidence: float | None
    openness: float | None


class Laws(NamedTuple):
    """Probabilities of the next token, `(k, V)` each."""

    base: Tensor
    tempered: Tensor
    tilted: Tensor


def choose(law: Tensor, seed: int | None, position: int) -> int:
    """The likeliest token of a law `(V,)`, or with a seed one that is drawn from it.

    Drawn by the Gumbel trick with noise that depends on seed and position alone, so that two answers part only where their
    laws do.
    """
    if seed is None:
        return int(law.argmax())
    generator = torch.Generator().manual_seed((seed * 1_000_003 + position) % 2**63)
    noise = torch.empty(law.shape, dtype=torch.float64).exponential_(generator=generator)
    return int((law.double().cpu() / noise).argmax())


class Tracer:
    """Traces generations of one model, for several threads: they take turns at the model, step by step.

    Args:
        model: its own temperature and guidance scale are not used.
        tokenizer: of its base.
        width: likeliest tokens of each law that a step lists.
    """

    def __init__(self, model: T3ForCausalLM, tokenizer: Any, width: int = 5) -> None:
        self.model, self.tokenizer, self.width = model, tokenizer, width
        self._stops = stop_ids(model, tokenizer)
        self._special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._turn = threading.Lock()

    @property
    def max_length(self) -> int | None:
        """The number of positions that the model has, if it says so."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit if isinstance(limit, int) else None

    def prompt(self, ids: Sequence[int]) -> list[PromptToken]:
        """The tokens that the model reads, with the gate's evidence; `ConfigError` if they are none, or too many."""
        terms = self._next(self._checked(ids), None, 1)
        evidence, openness = (None if of is None else of.tolist() for of in (terms.evidence, terms.gate))
        return [
            PromptToken(
                self.spell(ids[:i], token),
                token in self._special,
                None if evidence is None else evidence[i],
                None if openness is None else openness[i],
            )
            for i, token in enumerate(ids)
        ]

    def steps(
        self,
        prompt: Sequence[int],
        tilt: TiltConfig,
        *,
        law: Law = "tilted",
        max_new_tokens: int = 128,
        draft: Sequence[int] = (),
        seed: int | None = None,
    ) -> Iterator[Step]:
        """The steps of an answer, as they are made.

        Args:
            prompt: token ids.
            tilt: the settings under which the laws are computed.
            law: the one that the answer follows. The other two are computed at every step all the same.
            max_new_tokens: the answer ends at the latest after so many; earlier where the model has no further position.
            draft: a guess at the answer, such as the answer under other settings. One pass checks all of it, and what it has
                right is not generated again: the steps are the same as without it.
            seed: to sample; None takes the likeliest token.

        Raises:
            ConfigError: the prompt is empty or longer than the model's positions.
        """
        ids = self._checked(prompt)
        room = max_new_tokens if self.max_length is None else min(max_new_tokens, self.max_length - len(ids))
        guess = list(draft)[: max(0, room - 1)]
        terms = self._next(ids + guess, None, len(guess) + 1)
        while True:
            for row, step in enumerate(self._rows(terms, tilt, ids, guess, law, len(prompt), seed)):
                yield step
                ids.append(step.chosen.token_id)
                if step.ends or len(ids) - len(prompt) >= room:
                    return
                if row < len(guess) and guess[row] != step.chosen.token_id:
                    break
            right = row == len(guess)  # then the cache holds all but the last token
            guess = []
            terms = self._next(ids[-1:], terms.cache, 1) if right else self._next(ids, None, 1)

    def _rows(
        self, terms: NextTerms, tilt: TiltConfig, ids: list[int], guess: list[int], law: Law, start: int, seed: int | None
    ) -> Iterator[Step]:
        """A step for each of the kept rows; row i is after `ids` and i tokens of the guess."""
        kept, before = len(terms.logits), list(ids)
        openness = None if terms.gate is None else terms.gate[-kept:].to(terms.logits.device)
        for first in range(0, kept, ROWS):
            rows = slice(first, first + ROWS)
            log_odds = terms.log_odds[rows].to(terms.logits.device)
            open_here = None if openness is None else openness[rows]
            three = self.model.guidance.distributions(terms.logits[rows], log_odds, open_here, tilt)
            found = Laws(three.base.exp(), three.tempered.exp(), three.guided.exp())
            for i in range(len(found.base)):
                context = before + guess[: first + i]
                own = Laws(found.base[i], found.tempered[i], found.tilted[i])
                taken = choose(own.base if law == "base" else own.tilted, seed, len(context) - start)
                yield self._step(own, log_odds[i], 1.0 if open_here is None else float(open_here[i]), taken, context)

    def _step(self, own: Laws, log_odds: Tensor, openness: float, taken: int, context: list[int]) -> Step:
        """The step at which `taken` was taken after the tokens `context`."""
        listed = {int(token) for of in (own.base, own.tilted) for token in of.topk(min(self.width, len(of))).indices}
        tokens = torch.tensor(sorted(listed | {taken}), device=own.base.device)
        head_rows = self.model.head.rows_of(tokens.to(self.model.head.token_ids.device)).tolist()
        probabilities = (of[tokens].tolist() for of in own)
        candidates = {
            token: Candidate(token, self.spell(context, token), base, tempered, tilted, None if row < 0 else float(log_odds[row]))
            for token, row, base, tempered, tilted in zip(tokens.tolist(), head_rows, *probabilities)
        }
        ranked = sorted((of for token, of in candidates.items() if token in listed), key=lambda of: -of.base)
        return Step(candidates[taken], tuple(ranked), openness, taken in self._stops)

    def spell(self, context: Sequence[int], token: int) -> str:
        """What a token adds to the text of the tokens before it."""
        near = list(context[-CONTEXT:])
        before, after = self._decode(near), self._decode([*near, token])
        stem = before if after.startswith(before) else before.rstrip("\ufffd")
        return after[len(stem) :] if after.startswith(stem) else self._decode([token])

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _checked(self, ids: Sequence[int]) -> list[int]:
        if not ids:
            raise ConfigError("the prompt has no tokens; write something")
        if self.max_length is not None and len(ids) >= self.max_length:
            raise ConfigError(f"the prompt has {len(ids)} tokens; this model reads fewer than {self.max_length}")
        return list(ids)

    @torch.inference_mode()
    def _next(self, ids: Sequence[int], cache: Any, keep: int) -> NextTerms:
        with self._turn:
            return self.model.next_terms(torch.tensor([list(ids)], device=self.model.device), cache, keep)
