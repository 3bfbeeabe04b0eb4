"""Causal pooling against loops, and its incremental state under everything that a cache goes through."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

from support.architectures import build
from support.tiny import make_llama
from tempertilt.errors import TemperTiltError
from tempertilt.guidance.pooling import causal_mean, scan
from tempertilt.models.cache import MemoryLayer, can_merge, has_states, keep_rows, merge_caches


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
    layer, parts, start = MemoryLayer(max_length), [], 0
    for size in (9, 1, 1, 100, 1, 88):
        parts.append(layer.advance(states[:, start : start + size], mask[:, start : start + size]).means)
        start += size
    torch.testing.assert_close(torch.cat(parts, 1), loop_mean(states, mask), atol=1e-5, rtol=1e-5)


def loop_latest(events: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The number, among the real tokens, of the latest event of each kind."""
    out = torch.zeros(events.shape)
    for b in range(events.shape[0]):
        position, latest = 0, [0] * events.shape[2]
        for t in range(events.shape[1]):
            if mask[b, t]:
                position += 1
                latest = [position if happens else before for happens, before in zip(events[b, t].tolist(), latest)]
            out[b, t] = torch.tensor(latest)
    return out


@pytest.mark.parametrize("max_length", [None, 256])
def test_the_latest_events_are_remembered(states: torch.Tensor, mask: torch.Tensor, max_length: int | None) -> None:
    events = states[..., :3] > 1.5
    expected = loop_latest(events, mask)
    whole = scan(states, mask, events)
    assert torch.equal(whole.latest, expected) and torch.equal(whole.position, mask.cumsum(1).float())
    layer, parts, start = MemoryLayer(max_length), [], 0
    for size in (9, 1, 100, 1, 89):
        part = slice(start, start + size)
        parts.append(layer.advance(states[:, part, :0], mask[:, part], events[:, part]).latest)
        start += size
    assert torch.equal(torch.cat(parts, 1), expected)
    layer.crop(-150)
    again = layer.advance(states[:, 50:60, :0], mask[:, 50:60], events[:, 50:60])
    assert torch.equal(again.latest, expected[:, 50:60]) and torch.equal(again.position, whole.position[:, 50:60])
    layer.reset()
    fresh = layer.advance(states[:, :4, :0], None, events[:, :4]).latest
    assert torch.equal(fresh, loop_latest(events[:, :4], torch.ones(3, 4)))


@pytest.mark.parametrize("max_length", [None, 256])
def test_crop_select_repeat_reset(states: torch.Tensor, mask: torch.Tensor, max_length: int | None) -> None:
    layer = MemoryLayer(max_length)
    layer.advance(states[:, :20], mask[:, :20])
    layer.advance(states[:, 100:104], mask[:, 100:104])  # drafts that are rejected
    layer.crop(-4)
    layer.crop(0)
    order = torch.tensor([2, 0, 2])
    layer.reorder_cache(order)
    layer.batch_repeat_interleave(2)
    rows = order.repeat_interleave(2)
    out = layer.advance(states[rows, 20:23], mask[rows, 20:23]).means
    torch.testing.assert_close(out, loop_mean(states, mask)[rows, 20:23], atol=1e-5, rtol=1e-5)
    layer.reset()
    layer.batch_select_indices(torch.tensor([0]))
    fresh = layer.advance(states[:1, :4], None).means
    torch.testing.assert_close(fresh, loop_mean(states[:1, :4], torch.ones(1, 4)), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="minus the number"):
        layer.crop(3)


def test_static_state_keeps_its_addresses(states: torch.Tensor) -> None:
    layer = MemoryLayer(64)
    layer.advance(states[:, :5], None)
    assert layer.memory is not None
    before = layer.memory.data_ptr()
    for t in range(5, 60):
        layer.advance(states[:, t : t + 1], None)
    assert layer.memory.data_ptr() == before
    assert layer.is_compileable


def test_a_state_shorter_than_the_text_writes_over_its_oldest_positions(states: torch.Tensor, mask: torch.Tensor) -> None:
    layer = MemoryLayer(3)  # as beside a static cache of sliding windows only
    parts = [layer.advance(states[:, a:b], mask[:, a:b]).means for a, b in ((0, 5), (5, 6), (6, 8), (8, states.shape[1]))]
    torch.testing.assert_close(torch.cat(parts, 1), causal_mean(states, mask))


def test_another_batch_size_is_refused(states: torch.Tensor) -> None:
    layer = MemoryLayer()
    layer.advance(states, None)
    with pytest.raises(TemperTiltError, match="holds 3 sequences, the input has 2"):
        layer.advance(states[:2, :1], None)


def test_merged_sequences_go_on_as_each_would_alone(states: torch.Tensor) -> None:
    """Sequences of 30, 9 and 21 positions in one layer, one of which then leaves with its padding."""
    events, lengths = states[..., :2] > 1, (30, 9, 21)
    layers = []
    for row, length in enumerate(lengths):
        layers.append(MemoryLayer())
        layers[-1].advance(states[row : row + 1, :length], None, events[row : row + 1, :length])
    merged = layers[0]
    merged.merge_rows(layers[1:])
    assert merged.length == 30

    def go_on(rows: list[int], step: int) -> None:
        new = torch.stack([states[row, lengths[row] + step] for row in rows]).unsqueeze(1)
        memory = merged.advance(new, torch.ones(len(rows), 1), new[..., :2] > 1)
        for i, row in enumerate(rows):
            seen = states[row, : lengths[row] + step + 1]
            torch.testing.assert_close(memory.means[i, 0], seen.mean(0), atol=1e-5, rtol=1e-5)
            assert torch.equal(memory.latest[i, 0], loop_latest(seen[None, :, :2] > 1, torch.ones(1, len(seen)))[0, -1])

    go_on([0, 1, 2], 0)
    merged.keep_last(22)
    merged.reorder_cache(torch.tensor([1, 2]))
    assert merged.length == 22
    for step in range(1, 90):
        go_on([1, 2], step)


def key_values(*lengths: int) -> tuple[list[DynamicCache], list[torch.Tensor]]:
    """A cache for each length with one attention layer, and the keys that it holds."""
    keys = [torch.randn(1, 2, length, 4, generator=torch.Generator().manual_seed(length)) for length in lengths]
    caches = [DynamicCache() for _ in lengths]
    for cache, part in zip(caches, keys):
        cache.update(part, -part, 0)
    return caches, keys


def test_merged_keys_are_padded_on_the_left_and_dropped_again() -> None:
    caches, keys = key_values(7, 3)
    merged = merge_caches(caches)
    assert merged.get_seq_length() == 7
    assert torch.equal(merged.layers[0].keys[0], keys[0][0]) and torch.equal(merged.layers[0].keys[1, :, 4:], keys[1][0])
    assert not merged.layers[0].values[1, :, :4].any()
    keep_rows(merged, torch.tensor([1]), 3)
    assert torch.equal(merged.layers[0].keys, keys[1]) and torch.equal(merged.layers[0].values, -keys[1])


def test_caches_that_can_be_merged() -> None:
    assert can_merge(key_values(3)[0][0])
    config = make_llama().config
    assert not can_merge(StaticCache(config=config, max_cache_len=8))
    jamba = DynamicCache(config=build("jamba").config)
    assert can_merge(jamba) and has_states(jamba) and not has_states(DynamicCache(config=config))


def test_bfloat16_states_are_summed_in_float32() -> None:
    ones = torch.ones(1, 1000, 1, dtype=torch.bfloat16)
    layer = MemoryLayer()
    for t in range(1000):
        out = layer.advance(ones[:, t : t + 1], None).means
    assert out.dtype == torch.float32 and float(out[0, 0, 0]) == 1.0
