"""Batched generation from prompts given as token ids, with any causal LM that has the `generate` of transformers.

What ends an answer and how it is decoded is decided here, and only here: a checkpoint's own recommendations have no say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from tempertilt.data.examples import turn_end_id
from tempertilt.guidance.reply import Reply
from tempertilt.models.base import is_out_of_memory
from tempertilt.models.held_back import HeldBack, HeldStreamer, tokens_ahead
from tempertilt.models.limits import check_prompts, embedding_rows, room

FIRST_ROUND = 64
"""Tokens after which a batch is left by the continuations that have ended; the others go on by themselves."""


@dataclass(frozen=True)
class Decoding:
    """How to decode: greedily, with beams, or by drawing from the next-token distribution, untruncated unless said otherwise.

    Attributes:
        max_new_tokens: length of a continuation; it is cut where the model's positions end.
        do_sample: draw; else the most likely token, or the most likely of `num_beams` beams.
        temperature, top_k, top_p: of drawing; `top_k` 0 is all tokens.
        num_return_sequences: continuations of each prompt.
    """

    max_new_tokens: int
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    num_beams: int = 1
    num_return_sequences: int = 1

    def generation_config(self, stops: set[int], pad_token_id: int) -> GenerationConfig:
        """For `generate(generation_config=…)`: this, and nothing that the checkpoint recommends."""
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_return_sequences": self.num_return_sequences}
        options |= {"do_sample": self.do_sample, "num_beams": self.num_beams}
        if self.do_sample:
            options |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return ExactConfig(eos_token_id=sorted(stops) or None, pad_token_id=pad_token_id, **options)


class ExactConfig(GenerationConfig):  # type: ignore[misc]
    """A generation configuration that takes nothing from the model's own.

    `generate` fills in from the model what a configuration leaves open: repetition_penalty, min_p, suppress_tokens, ….
    """

    def update(self, defaults_only: bool = False, allow_custom_entries: bool = False, **kwargs: Any) -> Any:
        """As of the base class, but for the call by which `generate` hands over the model's own configuration."""
        if allow_custom_entries:
            return kwargs
        return super().update(defaults_only=defaults_only, **kwargs)


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the model's own, the tokenizer's eos, and what the chat template writes after a turn."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    stops = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id, turn_end_id(tokenizer)}
    return {stop for stop in stops if stop is not None}


def generate_ids(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    draws: int = 0,
    hidden_token_id: int | None = None,
    as_decoded: bool = False,
) -> list[list[list[int]]]:
    """Continuations of prompts, greedy or drawn at temperature 1 without truncation; see `generate`.

    Args:
        draws: 0 = one greedy continuation of each prompt; else this many drawn ones.
    """
    decoding = Decoding(max_new_tokens, do_sample=draws > 0, num_return_sequences=max(1, draws))
    return generate(model, tokenizer, prompts, decoding, hidden_token_id=hidden_token_id, as_decoded=as_decoded)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    hidden_token_id: int | None = None,
    streamer: Any = None,
    as_decoded: bool = False,
) -> list[list[list[int]]]:
    """Continuations of prompts in one batch, padded on the left, each cut after its first stop and where positions end.

    The few that are long do not keep the whole batch: what has not ended after 64 tokens goes on in a batch by itself. A
    batch that does not fit in memory is done in two halves.

    Where an unlearned model's reply breaks an answer off, the reply is the whole of it. A stream lags some tokens, and leaves out
    what it has not shown then. An answer of a model with a reply is decoded some tokens beyond its limit: a reply that begins
    there breaks it off, too.

    Args:
        hidden_token_id: a token inside the prompts that attention shall not see; None as it should be.
        streamer: of transformers, for one prompt and one continuation.
        as_decoded: give answers with all that was said before a reply broke them off, as a stream shows it that does not lag.

    Returns:
        For each prompt its continuations as token ids; with a streamer, what was shown.

    Raises:
        DataError: the model can't take one of the prompts.
    """
    check_prompts(model, tokenizer, prompts)
    replies = () if as_decoded or decoding.num_beams > 1 else replies_of(model)
    spaces = [room(model, len(prompt)) for prompt in prompts]
    most = [decoding.max_new_tokens if space is None else min(space, decoding.max_new_tokens) for space in spaces]
    further = decoding.max_new_tokens + (tokens_ahead(replies) if decoding.max_new_tokens else 0)
    limits = [further if space is None else min(space, further) for space in spaces]
    held = None if streamer is None or as_decoded else HeldStreamer(streamer, HeldBack(replies), most[0])
    streamer = streamer if held is None else held
    batch = _Batch(model, tokenizer, stop_ids(model, tokenizer), decoding, hidden_token_id, streamer)
    if decoding.num_beams == 1:
        answers = batch.in_rounds(prompts, limits)
    else:
        rows: dict[int, list[list[int]]] = {}
        for limit in sorted(set(limits)):
            chosen = [i for i, own in enumerate(limits) if own == limit]
            rows.update(zip(chosen, batch.run([prompts[i] for i in chosen], limit, decoding.num_return_sequences)))
        answers = [rows[i] for i in range(len(prompts))]
    if held is not None:
        return [[held.shown]]
    if as_decoded:
        return answers
    return [[given_whole(model, row)[:limit] for row in of] for of, limit in zip(answers, most)]


def given_whole(model: Any, answer: list[int]) -> list[int]:
    """An answer that is not streamed: where a reply of the model breaks it off, the reply alone."""
    for reply in replies_of(model):
        answer = reply.alone(answer)
    return answer


def given_in_stream(model: Any, answer: list[int]) -> list[int]:
    """An answer as a stream shows it that lags as streams do by default."""
    held = HeldBack(replies_of(model))
    return [shown.token for n in range(1, len(answer) + 1) for shown in held.show(answer[:n], over=n == len(answer))]


def replies_of(model: Any) -> tuple[Reply, ...]:
    """What a model says instead of answers; none of one that guesses, and of a plain causal LM."""
    return getattr(getattr(model, "guidance", None), "replies", ())


@dataclass(frozen=True)
class _Batch:
    """One model and one way to decode."""

    model: Any
    tokenizer: Any
    stops: set[int]
    decoding: Decoding
    hidden_token_id: int | None
    streamer: Any

    def in_rounds(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> list[list[list[int]]]:
        """Continuations of at most `limits` tokens, in rounds after which those that have ended leave the batch."""
        first = min(limits, default=0) if self.streamer else min([*limits, FIRST_ROUND])
        rows = self.run(prompts, first, self.decoding.num_return_sequences)
        active = self._unfinished([(i, row) for i, answers in enumerate(rows) for row in answers], limits)
        while active:
            steps = min(limits[i] - len(row) for i, row in active)
            longer = self.run([[*prompts[i], *row] for i, row in active], steps, 1)
            for (_, row), [more] in zip(active, longer):
                row += more
            active = self._unfinished(active, limits)
        return rows

    def _unfinished(self, active: list[tuple[int, list[int]]], limits: Sequence[int]) -> list[tuple[int, list[int]]]:
        return [(i, row) for i, row in active if len(row) < limits[i] and row[-1] not in self.stops]

    @torch.inference_mode()
    def run(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, draws: int) -> list[list[list[int]]]:
        """One call of the model's `generate`, or several where memory runs out."""
        if not prompts:
            return []
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None and pad < embedding_rows(self.model) else 0
        input_ids, mask = pad_left(prompts, pad, self.model.device)
        if self.hidden_token_id is not None:
            mask = mask * (input_ids != self.hidden_token_id)
        decoding = replace(self.decoding, max_new_tokens=max_new_tokens, num_return_sequences=draws)
        try:
            generated = self.model.generate(
                input_ids,
                attention_mask=mask,
                generation_config=decoding.generation_config(self.stops, pad),
                streamer=self.streamer,
            )
        except Exception as error:
            if len(prompts) == 1 or not is_out_of_memory(error):
                raise
            middle = len(prompts) // 2
            return [row for half in (prompts[:middle], prompts[middle:]) for row in self.run(half, max_new_tokens, draws)]
        rows = [_cut(row, self.stops) for row in generated[:, input_ids.shape[1] :].tolist()]
        return [rows[i * draws : (i + 1) * draws] for i in range(len(prompts))]


def _cut(row: list[int], stops: set[int]) -> list[int]:
    return row[: next((i + 1 for i, token in enumerate(row) if token in stops), len(row))]


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Left-padded `input_ids (B, T)` and `attention_mask (B, T)` int64 on `device`."""
    width = max(map(len, prompts))
    ids = [[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
