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

from tempertilt.guidance.composition import Composition
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.pooling import Memory
from tempertilt.guidance.reply import FORMS, reply_logits

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_ROWS: WeakValueDictionary[int, ReplyRows] = WeakValueDictionary()


class ReplyRows:
    """The guidance of a model, and what its latest `compute_logits` knew of each row.

    Attributes:
        latest: `(n, k)` positions of the latest events, see `Memory`.
        position: `(n,)` of the last token, counted from 1.
        token: `(n,)` its id.
    """

    def __init__(self, guidance: Guidance | Composition, config: Any) -> None:
        self.guidance = guidance
        self.numbers = FORMS * len(guidance.follows(None))
        self.latest = self.position = self.token = torch.zeros(0)
        _ROWS[id(config)] = self

    def note(self, latest: Tensor, position: Tensor, token: Tensor) -> None:
        """Keep what belongs to the rows whose logits are about to be sampled from."""
        self.latest, self.position, self.token = latest, position, token

    def follow(self, tokens: Tensor, before: Tensor) -> Tensor:
        """How much of each reply `(B, numbers)` texts end with after more tokens `(B, n)`, of the same `before` them."""
        tokens = tokens.to(before.device)
        counts = zip(self.guidance.follows(tokens), before.split(FORMS, -1))
        return torch.cat([follow(torch.ones_like(tokens), own)[:, -1] for follow, own in counts], -1)

    def next_tokens(self, ends: Tensor) -> Tensor:
        """The token that a reply goes on with in each row `(n,)`, -1 for none; `ends` `(n, numbers)` as of `follow`."""
        means = ends.new_zeros(len(ends), self.guidance.rank)
        reply = self.guidance.read(Memory(means, self.position, self.latest, ends)).reply
        assert reply is not None, "there is a reply"
        return reply


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

    def before(self, rows: ReplyRows, position: int) -> Tensor:
        """What the text ends with `(numbers,)` before `position`; looked up where more than one token has come since."""
        if self.ends is not None and position == self.position + 1:
            return self.ends
        tokens, none = [*self.prompt, *self.output][: position - 1], rows.latest.new_zeros(rows.numbers)
        return rows.follow(torch.tensor([tokens]), none[None])[0] if tokens else none


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
            before[index] = sequence.before(rows, positions[index])
        ends = rows.follow(rows.token.long()[:, None], before)
        for index, sequence in here.items():
            sequence.position, sequence.ends = positions[index], ends[index]
        return reply_logits(logits, rows.next_tokens(ends))
