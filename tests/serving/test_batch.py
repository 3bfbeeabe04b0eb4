"""Rows that join and leave a batch, against whole passes over each row alone."""

from __future__ import annotations

import pytest
import torch

from support.architectures import ARCHITECTURES, VOCAB, build
from support.rows import NoTexts, Row, long_rope, ntk, unlearned
from tempertilt.serving.batch import Batch
from tempertilt.serving.decoder import Decoder


def start(decoder: Decoder, *rows: Row) -> Batch:
    """A batch of the rows after its first step."""
    batches = [Batch(decoder, [row.answer for row in rows])] if decoder.pads else [Batch(decoder, [r.answer]) for r in rows]
    for batch in batches:
        batch.step()
    for batch in batches[1:]:
        batches[0].join(batch)
    return batches[0]


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@torch.inference_mode()
def test_rows_join_and_leave(name: str) -> None:
    model = unlearned(build(name), gated=name != "opt")  # its layers are wider than its output
    decoder = Decoder(model, NoTexts(), frozenset())
    assert decoder.merges
    first, long, short = Row(decoder, 5, 9, 1), Row(decoder, 11, 3, 2), Row(decoder, 8, 2, 3)
    batch = start(decoder, first, long, short)
    batch.step()
    assert batch.answers == [first.answer, long.answer]
    late, later = Row(decoder, 3, 4, 4), Row(decoder, 17, 5, 5)
    batch.join(start(decoder, late))
    batch.step()
    assert batch.answers == [first.answer, late.answer]
    batch.join(start(decoder, later))
    while batch.answers:
        batch.step()
    for row in (first, long, short, late, later):
        assert len(row.pieces) == row.answer.sampling.max_tokens
        row.check(model)


@torch.inference_mode()
def test_a_batch_is_as_wide_as_its_longest_answer() -> None:
    """So that no row's padding goes beyond the positions of the model: GPT-2 has 128 and no more."""
    model = build("gpt2")
    decoder = Decoder(model, NoTexts(), frozenset())
    growing, full = Row(decoder, 6, 100, 1), Row(decoder, 118, 10, 2)
    batch = start(decoder, growing, full)
    while batch.answers:
        batch.step()
        assert not batch.answers or batch.width == max(answer.length for answer in batch.answers)
    growing.check(model)
    full.check(model)
    assert len(growing.answer.tokens) == 100


@torch.inference_mode()
def test_a_cancelled_row_leaves_and_the_others_do_not_notice() -> None:
    model = unlearned(build("llama"))
    decoder = Decoder(model, NoTexts(), frozenset())
    gone, stays = Row(decoder, 20, 9, 1), Row(decoder, 5, 6, 2)
    batch = start(decoder, gone, stays)
    gone.answer.cancelled = True
    batch.step()
    assert batch.answers == [stays.answer] and len(gone.pieces) == 1
    while batch.answers:
        batch.step()
    stays.check(model)


@torch.inference_mode()
def test_a_failing_answer_fails_alone() -> None:
    model = build("llama")
    decoder = Decoder(model, NoTexts(), frozenset())
    bad, good = Row(decoder, 4, 5, 1), Row(decoder, 7, 5, 2)
    bad.answer._sampler.choose = lambda *_: 1 / 0  # type: ignore[method-assign]
    batch = start(decoder, bad, good)
    assert batch.answers == [good.answer] and isinstance(bad.pieces[0].error, ZeroDivisionError)
    batch.step()
    good.check(model)


def test_lengths_up_to_which_positions_are_steady() -> None:
    lengths = [Decoder(model, NoTexts(), frozenset()).steady_length for model in (long_rope(), ntk(), build("llama"))]
    assert lengths == [16, 32, None]
    nested = build("gemma3")
    nested.config.rope_parameters = {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {"rope_type": "default"}}
    assert Decoder(nested, NoTexts(), frozenset()).steady_length == 128


@torch.inference_mode()
def test_numbers_of_a_prompt() -> None:
    """In parts and at once, by models whose caches can and can't go on by several tokens, and whose positions change."""
    for model in (unlearned(build("llama")), unlearned(build("jamba")), unlearned(build("mamba")), unlearned(long_rope(280))):
        decoder = Decoder(model, NoTexts(), frozenset())
        ids = torch.randint(3, VOCAB, (1, 300), generator=torch.Generator().manual_seed(3))
        logprobs = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        tokens = decoder.score(ids[0].tolist(), 2)
        assert tokens[0].logprob is None and len(tokens) == 300
        shown = torch.tensor([token.logprob for token in tokens[1:]])
        torch.testing.assert_close(shown, logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0], atol=1e-4, rtol=1e-3)
        assert tokens[-1].top[0][1] == pytest.approx(float(logprobs[-2].max()), abs=1e-4)
