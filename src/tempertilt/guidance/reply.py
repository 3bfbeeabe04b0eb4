"""A reply in place of an answer: where a gate is open, the next token is the next one of a given text, for sure.

Which token of the reply is next follows from the tokens before it, and from nothing else:

    the next token is the one after the longest beginning of the reply with which the text so far ends.

There are two forms of the reply, and the longer beginning counts:

- `header + answer`: what the chat template writes before an answer, then the reply as an answer by itself. It counts only
  from the end of the header on.
- `tail`: what breaks off a sentence, then the reply.

So at the end of a prompt in which a gate has opened, the text ends with the header: the answer is the reply. Where a gate opens
in mid-answer, or in a plain text, the text ends with no beginning of either form: the tail comes next, from its first token.
Both forms end with the token that ends an answer; were decoding to go on after it, that token would come again, then the reply.

An answer that is not streamed need not show what a reply broke off: `Reply.alone` leaves it out. A stream that lags shows less of
it (`tempertilt.models.held_back`).

Where the prompt ends need not be known. What is remembered of a sequence is two whole numbers, how much of each form it ends
with, and they are a function of its tokens: whole passes, cached decoding, padding, beams and rejected drafts agree. A gate that
closes some tokens after its opening has its tokens counted to the beginning of the reply: what has begun is said to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tempertilt.errors import AdapterError

FORMS = 2  # numbers that are remembered
MOST_TOKENS = 4096  # of a form: what is remembered of it grows with the square
SURE = 700.0  # nats below the reply's token of all others: exp(-700) is 0 in float32, and exp(700) a float64


class Form(nn.Module):
    """A sequence of tokens, and how much of it a text ends with."""

    tokens: Tensor
    ends: Tensor

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__()
        n, own = len(tokens), torch.tensor(list(tokens), dtype=torch.long)
        ends = torch.zeros(n + 1, n + 1, dtype=torch.bool)  # [k, j]: whether the first k tokens end with the first j
        ends[:, 0] = True
        for k in range(n):
            ends[k + 1, 1:] = ends[k, :-1] & (own == own[k])
        self.register_buffer("tokens", own)
        self.register_buffer("ends", ends)

    def follow(self, input_ids: Tensor, real: Tensor, before: Tensor) -> Tensor:
        """How many of its first tokens the text ends with after each new token, `(B, n)` int64.

        Args:
            input_ids: `(B, n)` new tokens.
            real: `(B, n)` bool; a text begins after the last that is not.
            before: `(B,)` the number after the tokens before.
        """
        same = (input_ids.unsqueeze(-1) == self.tokens) & real.unsqueeze(-1)
        rows, n, length = same.shape
        ends = same.new_zeros(rows, n + 1, length + 1)  # [t, j]: whether the first t new tokens end with the first j
        ends[:, :, 0] = True
        ends[:, 0] = self.ends[before.long()]
        if n < length:
            for t in range(n):
                ends[:, t + 1, 1:] = same[:, t] & ends[:, t, :-1]
        else:
            for j in range(length):
                ends[:, 1:, j + 1] = same[:, :, j] & ends[:, :-1, j]
        return (ends[:, 1:] * torch.arange(length + 1, device=ends.device)).amax(-1)


class Reply(nn.Module):
    """A text that is said instead of an answer.

    Args:
        text: as it was given.
        header: tokens that the chat template writes before an answer; may be none.
        answer: tokens of the text as an answer by itself, and the one that ends an answer.
        tail: tokens that break off a sentence and say the text, and the one that ends an answer.

    Raises:
        AdapterError: there are no tokens, or too many.
    """

    following: Tensor
    continuing: Tensor

    def __init__(self, text: str, header: Sequence[int], answer: Sequence[int], tail: Sequence[int]) -> None:
        super().__init__()
        if not answer or not tail:
            raise AdapterError(f"the reply {text!r} has no tokens; must be a text with some")
        if (longest := max(len(header) + len(answer), len(tail))) > MOST_TOKENS:
            raise AdapterError(f"the reply has {longest} tokens; must be at most {MOST_TOKENS}")
        self.text, self._parts = text, {"header": list(header), "answer": list(answer), "tail": list(tail)}
        self.start = len(header)
        self.whole, self.tail = Form([*header, *answer]), Form(tail)
        self.register_buffer("following", torch.tensor([*header, *answer, answer[-1]]))
        self.register_buffer("continuing", torch.tensor([*tail, tail[-1]]))

    @property
    def settings(self) -> dict[str, Any]:
        """Text and tokens, JSON-ready."""
        return {"text": self.text, **self._parts}

    @classmethod
    def from_settings(cls, settings: Any) -> Reply:
        """The reply that `settings` describes; `AdapterError` if they do not."""
        try:
            text, *parts = (settings[name] for name in ("text", "header", "answer", "tail"))
        except (KeyError, TypeError) as error:
            raise AdapterError(f"the adapter's reply cannot be read: {type(error).__name__}: {error}") from error
        if not isinstance(text, str) or not all(isinstance(part, list) and all(map(_is_token, part)) for part in parts):
            raise AdapterError("the adapter's reply cannot be read: must be a text, and lists of token ids")
        return cls(text, *parts)

    def check_fits(self, vocab_size: int) -> None:
        """Raise `AdapterError` unless its tokens are below `vocab_size`."""
        last = max(max(part, default=0) for part in self._parts.values())
        if last >= vocab_size:
            raise AdapterError(f"the reply has the token id {last}; the base model has {vocab_size} tokens: encode it anew")

    def follow(self, input_ids: Tensor | None, position: Tensor, before: Tensor) -> Tensor:
        """How much of each form the text ends with after each new token, `(B, n, 2)` float32.

        Args:
            input_ids: `(B, n)`; None where tokens are given as embeddings: they are no token of the reply.
            position: `(B, n)` among the real tokens, counted from 1; 0 is padding before them.
            before: `(B, 2)` the same after the tokens before.
        """
        if input_ids is None:
            return before.new_zeros(*position.shape, FORMS)
        input_ids, real = input_ids.to(before.device), position > 0
        forms = (form.follow(input_ids, real, before[:, i]) for i, form in enumerate((self.whole, self.tail)))
        return torch.stack([count.float() for count in forms], -1)

    def said(self, ends: Tensor) -> Tensor:
        """How many tokens of the reply the text ends with, `(...)`, of `ends` `(..., 2)` as `follow` gives them."""
        whole, tail = ends.unbind(-1)
        return torch.where(self._is_whole(ends), whole - self.start, tail)

    def next_tokens(self, ends: Tensor) -> Tensor:
        """The token of the reply that is next, `(...)` int64, of `ends` `(..., 2)`."""
        whole, tail = ends.long().unbind(-1)
        return torch.where(self._is_whole(ends), self.following[whole], self.continuing[tail])

    @property
    def by_itself(self) -> list[int]:
        """The tokens of the reply as an answer by itself."""
        return list(self._parts["answer"])

    @property
    def known(self) -> int:
        """How many of its tokens must be there for it to be known as what breaks an answer off."""
        return len(self._parts["tail"]) // 2 + 1

    def begins(self, answer: Sequence[int]) -> int | None:
        """Where the reply begins with which an answer breaks off; None where it does not, or not enough of it is there yet.

        Args:
            answer: token ids. Something must be said before the reply.
        """
        tail = self._parts["tail"]
        end = list(answer[-len(tail) :])
        sizes = range(self.known, min(len(tail), len(answer) - 1) + 1)
        return next((len(answer) - size for size in sizes if end[-size:] == tail[:size]), None)

    def alone(self, answer: Sequence[int]) -> list[int]:
        """An answer that is not streamed: the reply by itself, where it breaks off what was said before.

        Args:
            answer: token ids. Where it was cut off, more than half of the reply must be there to be known as one.

        Returns:
            The answer, or the reply's, no longer than it.
        """
        return list(answer) if self.begins(answer) is None else self.by_itself[: len(answer)]

    def _is_whole(self, ends: Tensor) -> Tensor:
        """Whether the text ends with the header, or header and a part of the answer."""
        return (ends[..., 0] >= self.start) & (ends[..., 0] >= ends[..., 1])


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def reply_logits(logits: Tensor, reply: Tensor) -> Tensor:
    """Logits `(..., V)` with the distribution of the reply where there is one: its token is sure.

    Args:
        logits: of the distribution elsewhere, which stay as they are.
        reply: `(...)` the token that is next; -1 for none.
    """
    reply = reply.to(logits.device)
    if reply.device.type == "cpu" and not bool((reply >= 0).any()):
        return logits
    chosen = torch.arange(logits.shape[-1], device=logits.device) == reply.unsqueeze(-1)
    sure = torch.where(chosen, 0.0, -SURE).to(logits.dtype)
    return torch.where((reply >= 0).unsqueeze(-1), sure, logits)
