"""The trace of a generation: at every step the base distribution, the tempered, the guided, and what head and gate say.

    base      softmax z
    tempered  softmax z / (1 + (T - 1) g)
    guided    softmax [ z / (1 + (T - 1) g) + s g w(l) ]        g = 1 without a gate; see `tempertilt.guidance.tilt`

Where a reply is said, the guided distribution is its next token, for sure.

Nothing here knows of a user interface, and only `_distributions` knows of the method.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.tilt import TiltConfig, temper, tilt_weights
from tempertilt.models.generation import stop_ids
from tempertilt.models.limits import check_prompts, room
from tempertilt.models.t3 import NextTerms, T3ForCausalLM

Followed = Literal["base", "guided"]
"""The distribution whose tokens an answer takes."""

ROWS = 32  # positions computed at a time, so that a long draft does not fill the memory
CONTEXT = 8  # tokens before one that decide how it is spelt


@dataclass(frozen=True)
class Candidate:
    """A token that may come next.

    Attributes:
        token_id: in the vocabulary.
        text: what it adds to the text before it; U+FFFD where it is a part of a character.
        base, tempered, guided: its probability under the three distributions.
        log_odds: of retain, nats; None where the head has no row for the token.
        weight: what the tilt adds to its logit, nats; None where the head has no row for the token.
    """

    token_id: int
    text: str
    base: float
    tempered: float
    guided: float
    log_odds: float | None
    weight: float | None

    @property
    def retain(self) -> float | None:
        """P(retain) under the classifier, its prior balanced."""
        return None if self.log_odds is None else (1 + math.tanh(self.log_odds / 2)) / 2


@dataclass(frozen=True)
class Step:
    """One step of a generation.

    Attributes:
        chosen: the token that was taken.
        candidates: the likeliest of the base and of the guided distribution, by probability under the base.
        gate: value of the gate, in [0, 1]; 1 without a gate. At 0 the three distributions are one.
        temperature: what the base's logits are divided by.
        ends: whether the chosen token ends the answer.
        replied: whether the guided distribution is the next token of the adapter's reply, whatever tilt and temperature.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    gate: float
    temperature: float
    ends: bool
    replied: bool = False

    @property
    def turned(self) -> bool:
        """Whether the likeliest token of the guided distribution is another than the base's."""
        before = max(self.candidates, key=lambda candidate: candidate.base)
        return max(self.candidates, key=lambda candidate: candidate.guided).guided > before.guided


@dataclass(frozen=True)
class PromptToken:
    """A token that the model reads before it answers.

    Attributes:
        text: what it adds to the text before it.
        special: whether it is one of the tokenizer's special tokens.
        evidence: of the input gate, by the token itself; None without a gate.
        gate: value of the gate after it; None without a gate.
    """

    text: str
    special: bool
    evidence: float | None
    gate: float | None


class Distributions(NamedTuple):
    """What the method makes of k positions, or of one, without the first axis.

    Attributes:
        base, tempered, guided: probabilities of the next token, `(k, V)` each.
        weights: what the tilt adds to the logits of the head's tokens, `(k, K)`, nats.
        temperature: what the base's logits are divided by, `(k,)`.
    """

    base: Tensor
    tempered: Tensor
    guided: Tensor
    weights: Tensor
    temperature: Tensor


def _distributions(
    guidance: Guidance, logits: Tensor, log_odds: Tensor, gate: Tensor | None, tilt: TiltConfig, reply: Tensor | None = None
) -> Distributions:
    """ALL THAT IS COMPUTED OF THE METHOD: no other line here or of the page derives a weight, a temperature or a normaliser.

    Args:
        logits: base logits `(k, V)`.
        log_odds: of the head's tokens, `(k, K)`, nats.
        gate: `g` `(k,)`; None without a gate.
        reply: `(k,)` the token of the reply that is next, -1 for none; None without a reply.
    """
    three = guidance.distributions(logits, log_odds, gate, tilt, reply)
    weights = tilt.guidance_scale * tilt_weights(log_odds, tilt.forget_prior, gate)
    temperature = 1 / temper(logits.new_ones(len(logits), 1), tilt.temperature, gate).squeeze(-1)
    return Distributions(three.base.exp(), three.tempered.exp(), three.guided.exp(), weights, temperature)


def choose(probabilities: Tensor, seed: int | None, position: int) -> int:
    """The likeliest token of a distribution `(V,)`, or with a seed one that is drawn from it.

    Drawn by the Gumbel trick with noise that depends on seed and position alone, so that two answers part only where their
    distributions do.
    """
    if seed is None:
        return int(probabilities.argmax())
    generator = torch.Generator().manual_seed((seed * 1_000_003 + position) % 2**63)
    noise = torch.empty(probabilities.shape, dtype=torch.float64).exponential_(generator=generator)
    return int((probabilities.double().cpu() / noise).argmax())


def mean_probability(steps: Sequence[Step], name: str) -> float:
    """The geometric mean of the chosen tokens' probabilities under "base", "tempered" or "guided"."""
    logs = [math.log(max(getattr(step.chosen, name), 1e-300)) for step in steps]
    return math.exp(sum(logs) / len(logs))


class Tracer:
    """Traces generations of one model, for several threads: they take turns at the model, step by step.

    Args:
        model: its own temperature and guidance scale are not used.
        tokenizer: of its base.
        width: likeliest tokens of each distribution that a step lists.
    """

    def __init__(self, model: T3ForCausalLM, tokenizer: Any, width: int = 5) -> None:
        self.model, self.tokenizer, self.width = model, tokenizer, width
        self._stops = stop_ids(model, tokenizer)
        self._special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._turn = threading.Lock()

    def prompt(self, ids: Sequence[int]) -> list[PromptToken]:
        """The tokens that the model reads, with the gate's evidence.

        Raises:
            DataError: there are none, too many, or one without an embedding.
        """
        check_prompts(self.model, self.tokenizer, [ids])
        terms = self._next(ids, None, 1)
        asked = None if terms.evidence is None else terms.evidence.asked[0]
        evidence, gate = (None if values is None else values.tolist() for values in (asked, terms.gate))
        return [
            PromptToken(
                self.spell(ids[:i], token),
                token in self._special,
                None if evidence is None else evidence[i],
                None if gate is None else gate[i],
            )
            for i, token in enumerate(ids)
        ]

    def steps(
        self,
        prompt: Sequence[int],
        tilt: TiltConfig,
        *,
        follows: Followed = "guided",
        max_new_tokens: int = 128,
        draft: Sequence[int] = (),
        seed: int | None = None,
    ) -> Iterator[Step]:
        """The steps of an answer, as they are made.

        Args:
            prompt: token ids.
            tilt: the settings under which the distributions are computed.
            follows: the distribution whose tokens the answer takes. All three are computed at every step.
            max_new_tokens: the longest answer; shorter where the model has no further position.
            draft: a guess at the answer, such as the answer under other settings. One pass checks all of it, and its right
                tokens are not generated again: the steps are the same as without it.
            seed: to sample; None takes the likeliest token.

        Raises:
            DataError: the model can't take the prompt.
        """
        check_prompts(self.model, self.tokenizer, [prompt])
        ids, space = list(prompt), room(self.model, len(prompt))
        longest = max_new_tokens if space is None else min(max_new_tokens, space)
        guess = list(draft)[: max(0, longest - 1)]
        terms = self._next(ids + guess, None, len(guess) + 1)
        while True:
            for row, step in enumerate(self._rows(terms, tilt, ids, guess, follows, len(prompt), seed)):
                yield step
                ids.append(step.chosen.token_id)
                if step.ends or len(ids) - len(prompt) >= longest:
                    return
                if row < len(guess) and guess[row] != step.chosen.token_id:
                    break
            right = row == len(guess)  # then the cache holds all but the last token
            guess = []
            terms = self._next(ids[-1:], terms.cache, 1) if right else self._next(ids, None, 1)

    def _rows(
        self,
        terms: NextTerms,
        tilt: TiltConfig,
        ids: list[int],
        guess: list[int],
        follows: Followed,
        start: int,
        seed: int | None,
    ) -> Iterator[Step]:
        """A step for each of the last rows; row i is after `ids` and i tokens of the guess."""
        count, before = len(terms.logits), list(ids)
        gate, reply = (None if part is None else part[-count:].to(terms.logits.device) for part in (terms.gate, terms.reply))
        for first in range(0, count, ROWS):
            rows = slice(first, first + ROWS)
            log_odds = terms.log_odds[rows].to(terms.logits.device)
            gates, replies = (None if part is None else part[rows] for part in (gate, reply))
            whole = _distributions(self.model.guidance, terms.logits[rows], log_odds, gates, tilt, replies)
            for i, parts in enumerate(zip(*whole)):
                context, row = before + guess[: first + i], Distributions(*parts)
                taken = choose(row.base if follows == "base" else row.guided, seed, len(context) - start)
                step = self._step(row, log_odds[i], 1.0 if gates is None else float(gates[i]), taken, context)
                yield replace(step, replied=replies is not None and int(replies[i]) >= 0)

    def _step(self, row: Distributions, log_odds: Tensor, gate: float, taken: int, context: list[int]) -> Step:
        """The step at which `taken` was taken after the tokens `context`."""
        likeliest = (part.topk(min(self.width, len(part))).indices.tolist() for part in (row.base, row.guided))
        listed = {token for tokens in likeliest for token in tokens}
        tokens = torch.tensor(sorted(listed | {taken}), device=row.base.device)
        columns = self.model.head.rows_of(tokens.to(self.model.head.token_ids.device)).tolist()
        probabilities = (part[tokens].tolist() for part in (row.base, row.tempered, row.guided))
        candidates = {
            token: Candidate(
                token,
                self.spell(context, token),
                base,
                tempered,
                guided,
                None if column < 0 else float(log_odds[column]),
                None if column < 0 else float(row.weights[column]),
            )
            for token, column, base, tempered, guided in zip(tokens.tolist(), columns, *probabilities)
        }
        ranked = sorted((candidates[token] for token in listed), key=lambda candidate: -candidate.base)
        return Step(candidates[taken], tuple(ranked), gate, float(row.temperature), taken in self._stops)

    def spell(self, context: Sequence[int], token: int) -> str:
        """What a token adds to the text of the tokens before it."""
        near = list(context[-CONTEXT:])
        before, after = self._decode(near), self._decode([*near, token])
        stem = before if after.startswith(before) else before.rstrip("\ufffd")
        return after[len(stem) :] if after.startswith(stem) else self._decode([token])

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    @torch.inference_mode()
    def _next(self, ids: Sequence[int], cache: Any, keep: int) -> NextTerms:
        with self._turn:
            return self.model.next_terms(torch.tensor([list(ids)], device=self.model.device), cache, keep)
