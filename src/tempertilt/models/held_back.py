"""Streams of a model with a reply: the latest tokens wait until it is clear that no reply breaks them off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # settings are read without torch
    from torch import Tensor

    from tempertilt.guidance.reply import Reply

HELD = 16  # tokens


def tokens_ahead(replies: Sequence[Reply], tokens: int = HELD) -> int:
    """How far an answer is to be written beyond a token, to know that no reply begins within so many; 0 without replies."""
    return max((tokens + reply.known for reply in replies), default=0)


class Shown(NamedTuple):
    """A token to show, and its place in the answer; None where it is of the reply that stands for all of it."""

    token: int
    place: int | None


class HeldBack:
    """What may be shown of an answer while it is written.

    A gate may open at a value that has just been said, or a few tokens behind it. So tokens are shown late, and never if a
    reply begins before their turn: the stream goes on with the reply, and is the reply alone where it had shown nothing.

    Args:
        replies: of the model; without any, every token is shown at once.
        tokens: by how many a stream lags, beside those by which a reply is known; None = to the end of the answer.
    """

    def __init__(self, replies: Sequence[Reply], tokens: int | None = HELD) -> None:
        self.replies = tuple(replies)
        self._lag = None if tokens is None else tokens_ahead(self.replies, tokens)
        self._shown = 0  # tokens, of all that are to be shown
        self._broken: tuple[Reply, int, int] | None = None  # by which reply, from which place on, and what had been shown

    def show(self, answer: Sequence[int], over: bool) -> list[Shown]:
        """Tokens to show now.

        Args:
            answer: token ids so far, from the first.
            over: whether these are all.
        """
        if self._broken is None:
            begun = ((reply, reply.begins(answer)) for reply in self.replies)
            self._broken = next(((reply, at, self._shown) for reply, at in begun if at is not None), None)
        if self._broken is None:
            certain = len(answer) if over else 0 if self._lag is None else len(answer) - self._lag
            new = [Shown(answer[place], place) for place in range(self._shown, certain)]
        else:
            reply, begin, before = self._broken
            if before:
                new = [Shown(answer[place], place) for place in range(begin + self._shown - before, len(answer))]
            else:
                new = [Shown(token, None) for token in reply.by_itself[self._shown : len(answer)]]
        self._shown += len(new)
        return new


class HeldStreamer:
    """A streamer of transformers behind another: hands on what may be shown.

    Args:
        streamer: takes the prompt, then token by token.
        held: of one answer.
        most: tokens to hand on.
    """

    def __init__(self, streamer: Any, held: HeldBack, most: int) -> None:
        self.shown: list[int] = []
        self._streamer, self._held, self._most, self._answer = streamer, held, most, list[int]()
        self._prompt: Tensor | None = None

    def put(self, value: Tensor) -> None:
        """Take the prompt, or the next token."""
        if self._prompt is None:
            self._prompt = value
            self._streamer.put(value)
            return
        self._answer += value.reshape(-1).tolist()
        self._show(over=False)

    def end(self) -> None:
        """The answer is over."""
        self._show(over=True)
        self._streamer.end()

    def _show(self, over: bool) -> None:
        for token, _ in self._held.show(self._answer, over)[: self._most - len(self.shown)]:
            self.shown.append(token)
            assert self._prompt is not None
            self._streamer.put(self._prompt.new_tensor([token]))
