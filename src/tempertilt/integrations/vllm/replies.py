"""A reply in vLLM: a logits processor that makes the reply's next token sure where the gates are open.

Which token is next follows from a request's tokens (see `tempertilt.guidance.reply`). The engine tells them to logits processors
and to nobody else; where the gates are open is known to the model. So `compute_logits` notes, for each row that is sampled, what
the gates remember, and the processor, which comes next, joins both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from tempertilt.guidance.reply import reply_logits
from tempertilt.integrations.vllm.choices import Choices

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_ROWS: WeakValueDictionary[int, ReplyRows] = WeakValueDictionary()


class ReplyRows:
    """The models of an engine, and what its latest `compute_logits` knew of each row.

    Attributes:
        numbers: that are kept of what a text ends with.
        latest: `(n, k)` positions of the latest events, see `Memory`.
        position: `(n,)` of the last token, counted from 1.
        token: `(n,)` its id.
        which: `(n,)` the number of its model; None where the engine has one.
    """

    def __init__(self, choices: Choices, config: Any) -> None:
        self._choices = choices
        self.numbers = choices.width.ends
        self.latest = self.position = self.token = torch.zeros(0)
        self.which: Tensor | None = None
        _ROWS[id(config)] = self

    def note(self, latest: Tensor, position: Tensor, token: Tensor, which: Tensor | None = None) -> None:
        """Keep what belongs to the rows whose logits are about to be sampled from."""
        self.latest, self.position, self.token, self.which = latest, position, token, which

    def follow(self, tokens: Tensor, before: Tensor, row: int | None = None) -> Tensor:
        """How much of each reply `(B, numbers)` texts end with after more tokens `(B, n)`, of the same `before` them.

        The texts are those of all rows, or one of a `row`.
        """
        which = self.which if row is None or self.which is None else self.which[row : row + 1]
        return self._choices.follow(tokens, before, self._choices.groups(which))

    def next_tokens(self, ends: Tensor) -> Tensor:
        """The token that a reply goes on with in each row `(n,)`, -1 for none; `ends` `(n, numbers)` as of `follow`."""
        return self._choices.replies(self.latest, self.position, ends, self._choices.groups(self.which)).long()


@dataclass
class Sequence:
    """A request's tokens, and how much of each reply they end with.

    Attributes:
        prompt, output: token ids; the engine appends to `output`.
        position: up to which `ends` holds.
        ends: see `ReplyRows.follow`.
    """

    prompt: list[int]
    output: list[int]
    position: int = 0
    ends: Tensor | None = None

    def before(self, rows: ReplyRows, row: int, position: int) -> Tensor:
        """What the text of a row ends with `(numbers,)` before `position`; looked up where several tokens have come since."""
        if self.ends is not None and position == self.position + 1:
            return self.ends
        tokens, none = [*self.prompt, *self.output][: position - 1], rows.latest.new_zeros(rows.numbers)
        return rows.follow(torch.tensor([tokens]), none[None], row)[0] if tokens else none


class ReplyProcessor(LogitsProcessor):  # type: ignore[misc]
    """Makes the reply's next token sure where the gates are open; elsewhere logits stay as they are."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._config = vllm_config.model_config.hf_config
        self._sequences: dict[int, Sequence] = {}

    def is_argmax_invariant(self) -> bool:
        """False: the likeliest token becomes the reply's."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that come, go and change places."""
        if batch_update is None:
            return
        sequences = self._sequences
        for index in batch_update.removed:
            sequences.pop(index, None)
        for index, _, prompt, output in batch_update.added:
            sequences[index] = Sequence(prompt or [], output)
        for first, second, direction in batch_update.moved:
            one, other = sequences.pop(first, None), sequences.pop(second, None)
            if one is not None:
                sequences[second] = one
            if other is not None and direction == MoveDirectionality.SWAP:
                sequences[first] = other

    def apply(self, logits: Tensor) -> Tensor:
        """Logits `(n, V)` of the batch's requests, in their order."""
        rows = _ROWS.get(id(self._config))
        if rows is None or not self._sequences:  # a pass that tries the memory out
            return logits
        assert len(rows.position) == len(logits), "the engine samples from other rows than those whose logits it asked for"
        before = rows.latest.new_zeros(len(logits), rows.numbers)
        positions = rows.position.long().tolist()
        here = {index: sequence for index, sequence in self._sequences.items() if index < len(logits)}
        for index, sequence in here.items():
            before[index] = sequence.before(rows, index, positions[index])
        ends = rows.follow(rows.token.long()[:, None], before)
        for index, sequence in here.items():
            sequence.position, sequence.ends = positions[index], ends[index]
        return reply_logits(logits, rows.next_tokens(ends))
