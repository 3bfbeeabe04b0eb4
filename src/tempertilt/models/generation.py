"""Batched generation from prompts given as token ids, with any causal LM that has the `generate` of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tempertilt.models.base import is_out_of_memory

FIRST_ROUND = 64
"""Tokens after which a batch is left by the continuations that have ended; the others go on by themselves."""


def generate_ids(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    draws: int = 0,
    hidden_token_id: int | None = None,
) -> list[list[list[int]]]:
    """Continuations of prompts in one batch, padded on the left, each cut after its first end-of-sequence token.

    The few that are long do not keep the whole batch: what has not ended after 64 tokens goes on in a batch of its own. A
    batch that does not fit in memory is done in two halves.

    Args:
        draws: 0 = one greedy continuation a prompt; else so many sampled ones, at temperature 1 without truncation.
        hidden_token_id: a token inside the prompts that attention shall not see; None as it should be.

    Returns:
        For each prompt its continuations as token ids.
    """
    stops = stop_ids(model, tokenizer)
    first = min(max_new_tokens, FIRST_ROUND)
    found = _generate(model, tokenizer, prompts, stops, first, draws, hidden_token_id)
    if first == max_new_tokens:
        return found
    unfinished = [row for of in found for row in of if row[-1] not in stops]
    owners = [prompt for prompt, of in zip(prompts, found) for row in of if row[-1] not in stops]
    if unfinished:
        longer = [[*prompt, *row] for prompt, row in zip(owners, unfinished)]
        rest = _generate(model, tokenizer, longer, stops, max_new_tokens - first, min(draws, 1), hidden_token_id)
        for row, [more] in zip(unfinished, rest):
            row += more
    return found


@torch.inference_mode()
def _generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    stops: set[int],
    max_new_tokens: int,
    draws: int,
    hidden_token_id: int | None,
) -> list[list[list[int]]]:
    """One call of `generate`, or several where memory runs out."""
    sampling: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_k": None, "top_p": None}
    if draws:
        sampling = {"do_sample": True, "num_return_sequences": draws, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    pad = tokenizer.pad_token_id or 0
    input_ids, mask = pad_left(prompts, pad, model.device)
    if hidden_token_id is not None:
        mask = mask * (input_ids != hidden_token_id)
    try:
        generated = model.generate(
            input_ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stops) or None,
            pad_token_id=pad,
            **sampling,
        )
    except Exception as error:
        if len(prompts) == 1 or not is_out_of_memory(error):
            raise
        middle = len(prompts) // 2
        halves = (prompts[:middle], prompts[middle:])
        options = (stops, max_new_tokens, draws, hidden_token_id)
        return [row for half in halves for row in _generate(model, tokenizer, half, *options)]
    rows = [_cut(row, stops) for row in generated[:, input_ids.shape[1] :].tolist()]
    each = max(1, draws)
    return [rows[i * each : (i + 1) * each] for i in range(len(prompts))]


def _cut(row: list[int], stops: set[int]) -> list[int]:
    return row[: next((i + 1 for i, token in enumerate(row) if token in stops), len(row))]


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Left-padded `input_ids (B, T)` and `attention_mask (B, T)` int64 on `device`."""
    width = max(map(len, prompts))
    ids = [[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a generation: the model's own and the tokenizer's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    stops = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return {stop for stop in stops if stop is not None}
