"""States of batches that begin alike, against a pass of each sequence by itself, on tiny models of many architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.architectures import ARCHITECTURES, VOCAB, build
from tempertilt.models.base import body_of, decoder_layers, last_hidden_state
from tempertilt.models.body_pass import LEAST_ROWS, LEAST_TOKENS, body_pass
from tempertilt.models.frozen import watch

READ_ONCE = ("llama", "gpt2", "qwen2")


def sequences(common: int, rests: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(3, VOCAB, (common,), generator=generator)
    width = common + max(rests)
    ids, mask = torch.zeros(len(rests), width, dtype=torch.long), torch.zeros(len(rests), width, dtype=torch.long)
    for row, rest in enumerate(rests):
        # the first token after the beginning differs from row to row
        own = torch.randint(3 + len(rests), VOCAB, (rest,), generator=generator)
        own[0] = 3 + row
        ids[row, : common + rest] = torch.cat([start, own])
        mask[row, : common + rest] = 1
    return ids, mask


class Counted:
    """Tokens that went through a body."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.handle = body_of(model).register_forward_pre_hook(self.seen, with_kwargs=True)

    def seen(self, _module: Any, _args: Any, kwargs: Any) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_row_is_as_by_itself(name: str) -> None:
    model = build(name)
    ids, mask = sequences(LEAST_TOKENS + 3, [5, 1, 7, 3, 2])
    counted = Counted(model)
    found = body_pass(model, ids, mask, lower=1)
    counted.handle.remove()
    if name in READ_ONCE:
        assert counted.shapes == [(1, LEAST_TOKENS + 3), (5, 7)]
    assert found.last is not None and found.lower is not None and found.last.shape[:2] == ids.shape
    for row in range(len(ids)):
        own = ids[row : row + 1, : int(mask[row].sum())]
        with torch.inference_mode(), watch(decoder_layers(model)[0]) as capture:
            last = last_hidden_state(body_of(model)(input_ids=own, use_cache=False))
        assert capture.states is not None
        torch.testing.assert_close(found.last[row, : own.shape[1]], last[0], atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(found.lower[row, : own.shape[1]], capture.states[0], atol=2e-4, rtol=1e-4)


def test_the_layers_above_do_not_run() -> None:
    model = build("llama")
    ids, mask = sequences(LEAST_TOKENS, [4, 2, 3, 6])
    whole = body_pass(model, ids, mask, lower=1)
    reached: list[int] = []
    handle = decoder_layers(model)[1].register_forward_hook(lambda *_: reached.append(1))
    lower = body_pass(model, ids, mask, lower=1, only_lower=True)
    assert lower.last is None and not reached
    torch.testing.assert_close(lower.lower, whole.lower, atol=1e-6, rtol=1e-6)
    handle.remove()


@pytest.mark.parametrize(
    ("common", "rows"), [(LEAST_TOKENS - 1, LEAST_ROWS), (LEAST_TOKENS, LEAST_ROWS - 1)], ids=["short beginning", "few rows"]
)
def test_where_it_does_not_pay_there_is_one_pass(common: int, rows: int) -> None:
    model = build("llama")
    ids, mask = sequences(common, [4] * rows)
    counted = Counted(model)
    body_pass(model, ids, mask)
    assert counted.shapes == [tuple(ids.shape)]
    counted.handle.remove()


def test_equal_sequences_leave_a_token_each() -> None:
    model = build("llama")
    ids, mask = sequences(LEAST_TOKENS + 1, [3])
    ids, mask = ids.repeat(LEAST_ROWS, 1), mask.repeat(LEAST_ROWS, 1)
    counted = Counted(model)
    body_pass(model, ids, mask)
    assert counted.shapes == [(1, LEAST_TOKENS + 3), (LEAST_ROWS, 1)]
    counted.handle.remove()
