"""Decoding for many clients at once: transformers' `generate`, on one thread, in batches that are formed anew now and then.

transformers' own continuous batching packs the sequences of a batch into one row over a paged cache, in which the state that the
adapter keeps for each sequence has no place. So the batch here is an ordinary left-padded one, for which the guided logits are
exact (see docs/method.md). Every answer draws its tokens by itself from its row of the logits; `generate` is told the outcome.

A batch decodes until all its answers have ended, or, while others wait, for a number of steps; then what is unfinished goes to
the end of the queue and is continued from its tokens. So the finished leave, the waiting join, and none starves.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from tempertilt.errors import TemperTiltError
from tempertilt.models.generation import pad_left
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.serving.sampling import Choice, Sampler, Sampling, choice_of
from tempertilt.serving.textstream import TextStream

log = logging.getLogger("tempertilt")

QUANTUM = 32  # steps that a batch may take while others wait; more where the texts are long, see _quantum
PADDED_TOKENS = 16384  # positions in a batch when it is formed, padding included
SCORED_AT_ONCE = 256  # prompt positions whose logits are held at a time


class BusyError(TemperTiltError):
    """As many answers wait as may."""


class Tilt(NamedTuple):
    """Settings of the tilt that a request asked for; None is the adapter's."""

    temperature: float | None = None
    guidance_scale: float | None = None


NO_TILT = Tilt()


@dataclass(frozen=True)
class Law:
    """A next-token law: a served model by name, and settings of its tilt."""

    model: str
    tilt: Tilt = NO_TILT


@dataclass(frozen=True)
class Decoder:
    """What the engine needs of a served model.

    Attributes:
        model: a `T3ForCausalLM`, or a plain causal LM.
        tokenizer: to decode with, on the engine's thread only.
        stops: tokens that end an answer.
    """

    model: Any
    tokenizer: Any
    stops: frozenset[int]

    @contextmanager
    def under(self, tilt: Tilt) -> Iterator[None]:
        """Inside, the model has the settings of `tilt`."""
        if not isinstance(self.model, T3ForCausalLM) or tilt == NO_TILT:
            yield
            return
        before = self.model.adapter_config
        try:
            if tilt.temperature is not None:
                self.model.temperature = tilt.temperature
            if tilt.guidance_scale is not None:
                self.model.guidance_scale = tilt.guidance_scale
            yield
        finally:
            self.model.adapter_config = before


class Piece(NamedTuple):
    """What is new of an answer: its text, its tokens with their numbers, and at the end why it ended and how long it is."""

    text: str = ""
    choices: tuple[Choice, ...] = ()
    finish_reason: str | None = None
    tokens: int = 0
    error: Exception | None = None


class Answer:
    """An answer that is being written.

    Args:
        law: what it is drawn from.
        prompt: token ids.
        sampling: how.
        decoder: of the law's model.
        give: takes each `Piece`, on the engine's thread.
        score_prompt: give the numbers of the prompt's tokens first (those of the guided law).
    """

    def __init__(
        self,
        law: Law,
        prompt: Sequence[int],
        sampling: Sampling,
        decoder: Decoder,
        give: Callable[[Piece], None],
        score_prompt: bool = False,
    ) -> None:
        self.law, self.prompt, self.sampling = law, list(prompt), sampling
        self.tokens: list[int] = []
        self.ended = False
        self.cancelled = False  # set by any thread: the client has gone
        self.score_prompt = score_prompt
        self._give, self._stops = give, decoder.stops
        self._sampler = Sampler(sampling)
        self._text = TextStream(decoder.tokenizer, prompt, sampling.stops)

    @property
    def ids(self) -> list[int]:
        """Prompt and answer so far."""
        return self.prompt + self.tokens

    @property
    def left(self) -> int:
        """Tokens that it may still get."""
        return self.sampling.max_tokens - len(self.tokens)

    def step(self, logits: Tensor, best: int) -> int:
        """Draw a token from guided logits `(V,)`, whose greatest is `best`; give what it adds, and return it."""
        choice = self._sampler.choose(logits, best)
        self.tokens.append(choice.token)
        if choice.token in self._stops:
            self.end("stop", choice, self._text.finish())
            return choice.token
        text = self._text.push(choice.token)
        if self._text.stopped:
            self.end("stop", choice, text)
        elif self.left <= 0:
            text += self._text.finish()
            self.end("stop" if self._text.stopped else "length", choice, text)
        elif text or self.sampling.logprobs is not None:
            self._give(Piece(text, (choice,)))
        return choice.token

    def scored(self, choices: Sequence[Choice]) -> None:
        """Give the numbers of the prompt; the answer is over if it may have no token."""
        self.score_prompt = False
        self._give(Piece(choices=tuple(choices)))

    def end(self, reason: str, choice: Choice | None = None, text: str = "") -> None:
        """Give the last piece."""
        self.ended = True
        shown = (choice,) if choice and choice.token not in self._stops else ()
        self._give(Piece(text, shown, reason, len(self.tokens)))

    def fail(self, error: Exception) -> None:
        """Give an error instead of the rest."""
        self.ended = True
        self._give(Piece(error=error))


class Engine:
    """A thread that writes answers.

    Args:
        decoders: served models by name. They may share their base model: only this thread runs them.
        max_batch_size: answers decoded at a time.
        max_waiting: answers that may wait.
    """

    def __init__(self, decoders: Mapping[str, Decoder], *, max_batch_size: int, max_waiting: int) -> None:
        self._decoders, self._max_batch, self._max_waiting = dict(decoders), max_batch_size, max_waiting
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="t3-engine", daemon=True)
        self._thread.start()

    # --- from any thread ----------------------------------------------------------------------------------------------

    def submit(self, answers: Sequence[Answer]) -> None:
        """Queue the answers of a request, all or none; `BusyError` if too many wait."""
        with self._changed:
            if self._stopping:
                raise BusyError("the server is shutting down")
            if len(self._waiting) + len(answers) > self._max_waiting + self._max_batch - len(self._running):
                raise BusyError(f"{len(self._waiting)} answers wait and at most {self._max_waiting} may; try again later")
            self._waiting.extend(answers)
            self._changed.notify()

    def cancel(self, answers: Sequence[Answer]) -> None:
        """Let go of answers that nobody waits for."""
        with self._changed:
            for answer in answers:
                answer.cancelled = True
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """Answers that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers in the present batch that have not ended."""
        return sum(not (answer.ended or answer.cancelled) for answer in self._running)

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    is_cb_alive = is_alive  # the name by which the health check of transformers' server asks

    def stop(self) -> None:
        """End the thread after the present step; answers that are not finished are dropped."""
        with self._changed:
            self._stopping = True
            for answer in [*self._running, *self._waiting]:
                answer.cancelled = True
            self._waiting.clear()
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=30)

    # --- on the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                self._running = self._take()
            try:
                self._decode(self._running)
            except Exception as error:
                log.error("decoding failed", exc_info=True)
                for answer in self._running:
                    if not answer.ended:
                        answer.fail(error)
            with self._changed:
                self._waiting.extend(answer for answer in self._running if not (answer.ended or answer.cancelled))
                self._running = []

    def _take(self) -> list[Answer]:
        """The first answer in the queue, and those after it that can be decoded with it."""
        law = self._waiting[0].law
        taken: list[Answer] = []
        longest = 0
        for answer in self._waiting:
            longer = max(longest, len(answer.ids) + QUANTUM)
            fits = len(taken) < self._max_batch and longer * (len(taken) + 1) <= PADDED_TOKENS
            if answer.law == law and (fits or not taken):
                taken.append(answer)
                longest = longer
        chosen = set(map(id, taken))
        self._waiting = deque(answer for answer in self._waiting if id(answer) not in chosen)
        return taken

    @torch.inference_mode()
    def _decode(self, answers: Sequence[Answer]) -> None:
        """Write on until all have ended or others are to have a turn."""
        law = answers[0].law
        decoder = self._decoders[law.model]
        with decoder.under(law.tilt):
            for answer in answers:
                if answer.score_prompt:
                    answer.scored(score_prompt(decoder.model, answer.prompt, answer.sampling.logprobs or 0))
                if answer.left <= 0:
                    answer.end("length")
            answers = [answer for answer in answers if not (answer.ended or answer.cancelled)]
            if not answers:
                return
            pad = decoder.tokenizer.pad_token_id or 0
            input_ids, mask = pad_left([answer.ids for answer in answers], pad, decoder.model.device)
            round_ = _Round(answers, self._others_wait)
            decoder.model.generate(
                input_ids,
                attention_mask=mask,
                max_new_tokens=max(answer.left for answer in answers),
                do_sample=False,
                num_beams=1,
                eos_token_id=None,
                pad_token_id=pad,
                logits_processor=LogitsProcessorList([_Draw(round_)]),
                stopping_criteria=StoppingCriteriaList([_Ended(round_)]),
            )

    def _others_wait(self) -> bool:
        """Whether a batch is to end for others; of one answer alone it never is: it is written at one go, as `generate` would."""
        return bool(self._waiting) and self._max_batch > 1


class _Round:
    """A batch between two formations: who is in it, and when it is over."""

    def __init__(self, answers: Sequence[Answer], others_wait: Callable[[], bool]) -> None:
        self.answers, self._others_wait = answers, others_wait
        self._steps, self._quantum = 0, _quantum(max(len(answer.ids) for answer in answers))
        self.over = False

    def step(self, logits: Tensor) -> list[int]:
        """The next token of every row of guided logits `(B, V)`; any for rows that have ended."""
        tokens: list[int] = logits.argmax(-1).tolist()  # all at once: each look at a device's memory takes its time
        for i, answer in enumerate(self.answers):
            if answer.ended or answer.cancelled:
                continue
            try:
                tokens[i] = answer.step(logits[i], tokens[i])
            except Exception as error:  # what goes wrong with one answer is no matter of the others
                log.error("an answer failed", exc_info=True)
                answer.fail(error)
        self._steps += 1
        return tokens

    def ended(self) -> list[bool]:
        """Which rows need no further step."""
        ended = [answer.ended or answer.cancelled for answer in self.answers]
        self.over = all(ended) or (self._steps >= self._quantum and self._others_wait())
        return [True] * len(ended) if self.over else ended


def _quantum(length: int) -> int:
    """Steps of a batch while others wait: the longer the texts, the dearer it is to read them again, to go on with them."""
    return max(QUANTUM, length // 4)


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Leaves `generate` one token to choose in every row: the one that the row's answer has drawn."""

    def __init__(self, round_: _Round) -> None:
        self._round = round_

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._round.over:  # a step that some devices take before they notice
            return scores
        tokens = torch.tensor(self._round.step(scores.float()), device=scores.device).unsqueeze(1)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)


class _Ended(StoppingCriteria):  # type: ignore[misc]
    """Tells `generate` which rows have ended."""

    def __init__(self, round_: _Round) -> None:
        self._round = round_

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(self._round.ended(), device=input_ids.device)


def score_prompt(model: Any, prompt: Sequence[int], alternatives: int) -> list[Choice]:
    """The tokens of a prompt with their log-probabilities under the model's law; the first has none.

    Args:
        model: a `T3ForCausalLM` (its guided law) or a plain causal LM.
        prompt: token ids.
        alternatives: likeliest other tokens to give at each position.
    """
    choices = [Choice(prompt[0])]
    ids = torch.tensor([list(prompt)], device=model.device)
    cache = DynamicCache(config=model.config.get_text_config())
    for start in range(0, len(prompt) - 1, SCORED_AT_ONCE):
        part = ids[:, start : min(start + SCORED_AT_ONCE, len(prompt) - 1)]
        seen = torch.ones_like(ids[:, : start + part.shape[1]])
        logits = model(input_ids=part, attention_mask=seen, cache=cache, use_cache=True).logits[0]
        rows = torch.log_softmax(logits.float(), -1)
        choices += [choice_of(row, prompt[start + i + 1], alternatives) for i, row in enumerate(rows)]
    return choices
