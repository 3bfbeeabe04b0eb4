"""An answer that is being written, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from tempertilt.serving.decoder import Decoder, Distribution
from tempertilt.serving.sampling import Sampler, Sampling, Token
from tempertilt.serving.textstream import TextStream


class Piece(NamedTuple):
    """What is new of an answer.

    Attributes:
        text, tokens: that came; tokens have their numbers.
        finish_reason: why the answer has ended, "stop" or "length"; None while it goes on.
        length: tokens of the answer so far; 0 with the numbers of the prompt.
        error: that the engine met instead of an end.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None
    length: int = 0
    error: Exception | None = None


class Answer:
    """An answer that is being written.

    Args:
        distribution: that it is drawn from.
        prompt: token ids.
        sampling: how it is drawn.
        decoder: of the distribution's model.
        give: takes each `Piece`, on the engine's thread.
        score_prompt: give the numbers of the prompt's tokens first.
    """

    def __init__(
        self,
        distribution: Distribution,
        prompt: Sequence[int],
        sampling: Sampling,
        decoder: Decoder,
        give: Callable[[Piece], None],
        score_prompt: bool = False,
    ) -> None:
        self.distribution, self.decoder, self.prompt, self.sampling = distribution, decoder, list(prompt), sampling
        self.tokens: list[int] = []
        self.ended = False
        self.cancelled = False  # set by any thread: the client has gone
        self.score_prompt = score_prompt
        self.client = ""  # who waits for it
        self.ahead = 0  # tokens to write beyond `max_tokens`, or a text that it is to end at
        self._stopped: int | None = None  # its length at the end of such a text
        self.reused = 0  # tokens of the prompt that were read for an earlier one
        tokens = getattr(decoder.tokenizer, "added_tokens_encoder", {})
        named = {tokens[text] for text in sampling.stops if text in tokens}  # special tokens leave no text to be found in
        self._give, self.stops = give, decoder.stops | named
        self._sampler = Sampler(sampling)
        self._text = TextStream(decoder.tokenizer, prompt, sampling.stops)

    @property
    def over(self) -> bool:
        """Whether nothing more is to be written."""
        return self.ended or self.cancelled

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt) + len(self.tokens)

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer at most."""
        return len(self.prompt) + self.sampling.max_tokens + self.ahead

    def step(self, logits: Tensor, best: int) -> int:
        """Draw a token from guided logits `(V,)`, whose greatest is `best`; give what it adds, and return it."""
        token = self._sampler.choose(logits, best)
        self.tokens.append(token.id)
        if token.id in self.stops:
            self.end("stop", self._text.finish())
            return token.id
        text = self._text.push(token.id)
        if self._text.stopped and self._stopped is None:
            self._stopped = self.length
        if self.length >= (self.longest if self._stopped is None else min(self.longest, self._stopped + self.ahead)):
            text += self._text.finish()
            self.end("stop" if self._text.stopped else "length", text, token)
        elif text or self.sampling.logprobs is not None:
            self._give(Piece(text, (token,), length=len(self.tokens)))
        return token.id

    def scored(self, tokens: Sequence[Token]) -> None:
        """Give the numbers of the prompt."""
        self.score_prompt = False
        self._give(Piece(tokens=tuple(tokens)))

    def end(self, reason: str, text: str = "", token: Token | None = None) -> None:
        """Give the last piece."""
        self.ended = True
        self._give(Piece(text, () if token is None else (token,), reason, len(self.tokens)))

    def fail(self, error: Exception) -> None:
        """Give an error instead of the rest."""
        self.ended = True
        self._give(Piece(error=error))
