"""Causal pooling against loops, and its incremental state under everything that a cache goes through."""

from __future__ import annotations

import pytest
import torch

from tempertilt.errors import TemperTiltError
from tempertilt.guidance.pooling import causal_mean, scan
from tempertilt.models.cache import PoolingLayer


def loop_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(states)
    for b in range(states.shape[0]):
        for t in range(states.shape[1]):
            seen = [states[b, i] for i in range(t + 1) if mask[b, i]]
            if seen:
                out[b, t] = torch.stack(seen).mean(0)
    return out


@pytest.fixture()
def states() -> torch.Tensor:
    return torch.randn(3, 200, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture()
def mask() -> torch.Tensor:
    mask = torch.ones(3, 200, dtype=torch.long)
    mask[0, :7] = 0  # left padding
    mask[1, 150:] = 0  # right padding
    mask[2, 3:9] = 0  # inside
    return mask


def test_whole_sequences(states: torch.Tensor, mask: torch.Tensor) -> None:
    torch.testing.assert_close(causal_mean(states, mask), loop_mean(states, mask), atol=1e-5, rtol=1e-5)
    everything = torch.ones_like(mask)
    torch.testing.assert_close(causal_mean(states), loop_mean(states, everything), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("max_length", [None, 256])
def test_any_chunks_give_the_same(states: torch.Tensor, mask: torch.Tensor, max_length: int | None) -> None:
    layer, parts, start = PoolingLayer(max_length), [], 0
    for size in (9, 1, 1, 100, 1, 88):
        parts.append(layer.advance(states[:, start : start + size], mask[:, start : start + size])[0])
        start += size
    torch.testing.assert_close(torch.cat(parts, 1), loop_mean(states, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("max_length", [None, 256])
def test_evidence_is_the_highest_real_one_so_far(states: torch.Tensor, mask: torch.Tensor, max_length: int | None) -> None:
    evidence = states[..., 0]
    expected = torch.full((3, 200), -torch.inf)
    for b in range(3):
        for t in range(200):
            seen = [evidence[b, i] for i in range(t + 1) if mask[b, i]]
            expected[b, t] = max(seen) if seen else -torch.inf
    assert torch.equal(scan(states, mask, evidence)[1], expected)
    layer, parts, start = PoolingLayer(max_length), [], 0
    for size in (9, 1, 100, 1, 89):
        part = slice(start, start + size)
        parts.append(layer.advance(states[:, part, :0], mask[:, part], evidence[:, part])[1])
        start += size
    assert torch.equal(torch.cat(parts, 1), expected)
    layer.crop(-150)
    again = layer.advance(states[:, 50:60, :0], mask[:, 50:60], evidence[:, 50:60])[1]
    assert torch.equal(again, expected[:, 50:60])
    layer.reset()
    assert torch.equal(layer.advance(states[:, :4, :0], None, evidence[:, :4])[1], evidence[:, :4].cummax(1).values)


@pytest.mark.parametrize("max_length", [None, 256])
def test_crop_select_repeat_reset(states: torch.Tensor, mask: torch.Tensor, max_length: int | None) -> None:
    layer = PoolingLayer(max_length)
    layer.advance(states[:, :20], mask[:, :20])
    layer.advance(states[:, 100:104], mask[:, 100:104])  # drafts that are rejected
    layer.crop(-4)
    layer.crop(0)
    order = torch.tensor([2, 0, 2])
    layer.reorder_cache(order)
    layer.batch_repeat_interleave(2)
    rows = order.repeat_interleave(2)
    out, _ = layer.advance(states[rows, 20:23], mask[rows, 20:23])
    torch.testing.assert_close(out, loop_mean(states, mask)[rows, 20:23], atol=1e-5, rtol=1e-5)
    layer.reset()
    layer.batch_select_indices(torch.tensor([0]))
    fresh, _ = layer.advance(states[:1, :4], None)
    torch.testing.assert_close(fresh, loop_mean(states[:1, :4], torch.ones(1, 4)), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="minus the number"):
        layer.crop(3)


def test_static_state_keeps_its_addresses(states: torch.Tensor) -> None:
    layer = PoolingLayer(64)
    layer.advance(states[:, :5], None)
    assert layer.memory is not None
    before = layer.memory.data_ptr()
    for t in range(5, 60):
        layer.advance(states[:, t : t + 1], None)
    assert layer.memory.data_ptr() == before
    assert layer.is_compileable


def test_a_state_shorter_than_the_text_writes_over_its_oldest_positions(states: torch.Tensor, mask: torch.Tensor) -> None:
    layer = PoolingLayer(3)  # as beside a static cache of sliding windows only
    parts = [layer.advance(states[:, a:b], mask[:, a:b])[0] for a, b in ((0, 5), (5, 6), (6, 8), (8, states.shape[1]))]
    torch.testing.assert_close(torch.cat(parts, 1), causal_mean(states, mask))


def test_another_batch_size_is_refused(states: torch.Tensor) -> None:
    layer = PoolingLayer()
    layer.advance(states, None)
    with pytest.raises(TemperTiltError, match="holds 3 sequences, the input has 2"):
        layer.advance(states[:2, :1], None)


def test_bfloat16_states_are_summed_in_float32() -> None:
    ones = torch.ones(1, 1000, 1, dtype=torch.bfloat16)
    layer = PoolingLayer()
    for t in range(1000):
        out, _ = layer.advance(ones[:, t : t + 1], None)
    assert out.dtype == torch.float32 and float(out[0, 0, 0]) == 1.0
