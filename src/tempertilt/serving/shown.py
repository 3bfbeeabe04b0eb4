"""What a client is shown of an answer that a reply may break off."""

from __future__ import annotations

from tempertilt.models.generation import replies_of
from tempertilt.models.held_back import HeldBack, Shown, tokens_ahead
from tempertilt.serving.answers import Answer, Piece
from tempertilt.serving.requests import Job
from tempertilt.serving.sampling import Token
from tempertilt.serving.textstream import TextStream


class ShownAnswer:
    """An answer on its way from the engine to the client; of a model without a reply it is shown as it comes.

    The answer of a model with a reply is written some tokens beyond its limit, and beyond a text that it is to end at (`ahead`,
    which is set here): a reply that begins there breaks it off, too.

    Args:
        job: the request.
        answer: one of its answers.
        lag: tokens by which it is shown late, 0 = as it comes; None = it is shown when it is over.
    """

    def __init__(self, job: Job, answer: Answer, lag: int | None) -> None:
        replies = () if lag == 0 else replies_of(answer.decoder.model)
        self._answer, self._held, self._most = answer, HeldBack(replies, lag), answer.sampling.max_tokens
        if self._most:
            answer.ahead = min(tokens_ahead(replies), job.model.max_model_len - answer.longest)
        self._text = TextStream(job.model.reader, answer.prompt, answer.sampling.stops)
        self._numbers: list[Token] = []
        self._length, self._over = 0, False  # of what is shown: tokens, and whether there is no more

    def take(self, piece: Piece) -> Piece:
        """Take what the engine gives; return what is new for the client, which may be nothing."""
        if not self._held.replies or piece.error is not None or not piece.length:  # the numbers of the prompt have no length
            return piece
        self._numbers += piece.tokens
        over = piece.finish_reason is not None
        text, tokens = "", list[Token]()
        for shown in self._held.show(self._answer.tokens[: piece.length], over):
            if self._over or self._length == self._most:
                break
            self._length += 1
            self._over = shown.token in self._answer.stops
            if not self._over:
                text += self._text.push(shown.token)
                self._over = self._text.stopped
                tokens += self._number(shown)
        if not over:
            return Piece(text, tuple(tokens))
        text += self._text.finish()
        return Piece(text, tuple(tokens), "stop" if self._over or self._text.stopped else "length", self._length)

    def _number(self, shown: Shown) -> list[Token]:
        """The numbers of a token, where they are wanted; of a reply that stands for the answer it is sure."""
        alternatives = self._answer.sampling.logprobs
        if alternatives is None:
            return []
        if shown.place is None:
            return [Token(shown.token, 0.0, ((shown.token, 0.0),) if alternatives else ())]
        return self._numbers[shown.place : shown.place + 1]
