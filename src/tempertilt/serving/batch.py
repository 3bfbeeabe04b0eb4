"""Answers that are decoded together: one row for each, one token for each row at every step.

Rows are padded on the left. The guided logits of a row are those of its tokens alone (docs/method.md), because the padding is
masked and every row counts its own positions. A row leaves when its answer is over, and with it the padding that only it
needed; so the batch is never wider than its longest answer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tempertilt.models.cache import Prefix, begin_with, copy_prefix, keep_rows, merge_caches
from tempertilt.models.generation import pad_left
from tempertilt.serving.answers import Answer
from tempertilt.serving.decoder import Decoder
from tempertilt.serving.prefixes import Prefixes

log = logging.getLogger("tempertilt")


class Batch:
    """Rows of answers in one cache; the first step reads their prompts.

    Args:
        decoder: that they are drawn from, set to their tilt in every step.
        answers: one, or several if `decoder.pads`.
        parts: what the prompts begin with that was read before, one for each answer, or nothing.
        prefixes: where to leave what they begin with.
    """

    def __init__(
        self, decoder: Decoder, answers: Sequence[Answer], parts: Sequence[Prefix] = (), prefixes: Prefixes | None = None
    ) -> None:
        self.answers = list(answers)
        self._decoder, self._prefixes = decoder, prefixes
        self._ids, self._mask = pad_left([answer.prompt for answer in answers], 0, decoder.model.device)  # (B, T)
        self._cache: Any = decoder.new_cache()  # holds all positions but the last, once a step was made
        self._started = False
        self._read = self._begin_with(parts) if parts else 0  # positions that the cache holds before the first step

    def _begin_with(self, parts: Sequence[Prefix]) -> int:
        """Fill the cache with what was read before; every row has as many new tokens as the one that needs most."""
        new = max(len(answer.prompt) - part.length for answer, part in zip(self.answers, parts))
        lengths = [max(0, len(answer.prompt) - new) for answer in self.answers]
        for answer, length in zip(self.answers, lengths):
            answer.reused = length
        begin_with(self._cache, parts, lengths)
        return max(lengths)

    def step(self) -> None:
        """Draw the next token of every answer, and drop the answers that are over."""
        logits = self._forward()
        best: list[int] = logits.argmax(-1).tolist()  # all at once: each look at a device's memory takes its time
        drawn = [_draw(answer, row, token) for answer, row, token in zip(self.answers, logits, best)]
        self._ids = torch.cat([self._ids, torch.tensor(drawn, device=self._ids.device).unsqueeze(1)], 1)
        self._mask = pad(self._mask, (0, 1), value=1)
        self._drop_what_is_over()

    def _forward(self) -> Tensor:
        """Guided logits `(B, V)` float32 after the last token of every row."""
        model, cache = self._decoder.model, self._cache
        new = 1 if self._started and cache is not None else self.width - self._read
        options: dict[str, Any] = {"use_cache": cache is not None} | ({} if cache is None else {"cache": cache})
        if self._decoder.takes_positions:
            options["position_ids"] = (self._mask.cumsum(1) - 1).clamp(min=0)  # of all tokens; the model takes those it needs
        if self._decoder.keeps_logits:
            options["logits_to_keep"] = 1
        inputs = model.prepare_inputs_for_generation(
            self._ids,
            next_sequence_length=new,
            attention_mask=self._mask if self._padded else None,
            is_first_iteration=not self._started and not self._read,
            **options,
        )
        output = model(**inputs)
        self._cache = None if cache is None else output.cache
        if not self._started and self._prefixes is not None:
            self._leave_prefixes(self._prefixes)
        self._started = True
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def _leave_prefixes(self, prefixes: Prefixes) -> None:
        """Keep what the prompts have in common with others, now that they are read."""
        for row, answer in enumerate(self.answers):
            if length := prefixes.worth(answer.client, answer.prompt):
                part = copy_prefix(self._cache, row, self.width - len(answer.prompt), length)
                prefixes.keep(answer.client, answer.prompt[:length], part)

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return int(self._ids.shape[1])

    @property
    def _padded(self) -> bool:
        return any(answer.length < self.width for answer in self.answers)

    def _drop_what_is_over(self) -> None:
        left = [i for i, answer in enumerate(self.answers) if not answer.over]
        if len(left) == len(self.answers):
            return
        self.answers = [self.answers[i] for i in left]
        if self.answers:
            width = max(answer.length for answer in self.answers)
            rows = torch.tensor(left, device=self._ids.device)
            self._ids, self._mask = self._ids[rows, -width:], self._mask[rows, -width:]
            keep_rows(self._cache, rows, width - 1)

    def join(self, other: Batch) -> None:
        """Take over the rows of another batch of the same distribution; both have made a step."""
        if self.answers and other.answers:
            width = max(self.width, other.width)
            self._ids, self._mask = (
                torch.cat([pad(part, (width - part.shape[1], 0)) for part in parts])
                for parts in ((self._ids, other._ids), (self._mask, other._mask))
            )
            self._cache = merge_caches([self._cache, other._cache])
        elif other.answers:
            self._ids, self._mask, self._cache = other._ids, other._mask, other._cache
        self.answers += other.answers


def _draw(answer: Answer, logits: Tensor, best: int) -> int:
    """The next token of an answer; what goes wrong with one answer is no matter of the others."""
    if answer.over:
        return best
    try:
        return answer.step(logits, best)
    except Exception as error:
        log.error("an answer failed", exc_info=True)
        answer.fail(error)
        return best
