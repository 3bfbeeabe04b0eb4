"""Who is decoded when, with whom, and what happens when something fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from support.architectures import build
from support.rows import NoTexts, Row, long_rope, unlearned
from support.servers import wait_until
from tempertilt.serving import engine as engine_module
from tempertilt.serving.batch import Batch
from tempertilt.serving.decoder import Decoder
from tempertilt.serving.engine import BusyError, Engine


@contextmanager
def running(decoder: Decoder, **options: int) -> Iterator[Engine]:
    engine = Engine(**{"max_batch_size": 4, "max_waiting": 99, **options})
    try:
        yield engine
    finally:
        engine.stop()
        assert not engine.is_alive()


def finish(engine: Engine, *rows: Row) -> None:
    engine.submit([row.answer for row in rows])
    wait_until(lambda: all(row.answer.ended for row in rows))


@pytest.fixture()
def llama() -> Decoder:
    return Decoder(unlearned(build("llama")), NoTexts(), frozenset())


@pytest.fixture()
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every step of every batch."""
    seen: list[int] = []
    step = Batch.step
    monkeypatch.setattr(Batch, "step", lambda batch: (seen.append(len(batch.answers)), step(batch))[1])
    return seen


def test_the_waiting_take_the_places_of_the_finished(llama: Decoder, sizes: list[int]) -> None:
    rows = [Row(llama, 3 + i, 2 + 5 * (i % 3), i) for i in range(14)]
    with running(llama) as engine:
        finish(engine, *rows)
        assert engine.waiting == engine.running == 0
    for row in rows:
        row.check(llama.model)
    assert max(sizes) == 4 and sum(sizes) == sum(len(row.answer.tokens) for row in rows)  # no row steps when it is over


def test_two_models_take_turns(llama: Decoder) -> None:
    """A long answer of one model does not keep the other model's clients waiting."""
    long, short = Row(llama, 4, 90, 1, model="a"), Row(llama, 5, 3, 2, model="b")
    with running(llama, max_batch_size=1) as engine:
        engine.submit([long.answer])
        finish(engine, short)
        assert not long.answer.ended
        wait_until(lambda: long.answer.ended)
    long.check(llama.model)
    short.check(llama.model)


def test_nobody_is_admitted_beyond_the_positions(llama: Decoder, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "POSITIONS", 60)
    rows = [Row(llama, 25, 3, 1), Row(llama, 25, 3, 2), Row(llama, 25, 3, 3), Row(llama, 100, 2, 4)]
    with running(llama) as engine:
        finish(engine, *rows)
    assert max(sizes) == 2 and all(len(row.pieces) == row.answer.sampling.max_tokens for row in rows)


def test_answers_whose_positions_depend_on_the_longest_row_are_alone(sizes: list[int]) -> None:
    """LongRoPE: up to its original length (16) rows are together; one that may go beyond has numbers of its own alone."""
    decoder = Decoder(unlearned(long_rope()), NoTexts(), frozenset())
    rows = [Row(decoder, 4, 12, 1), Row(decoder, 10, 12, 2), Row(decoder, 8, 8, 3), Row(decoder, 40, 5, 4)]
    with running(decoder) as engine:
        finish(engine, *rows)
    assert max(sizes) == 2
    for row in rows:
        row.check(decoder.model)


def test_models_with_other_caches_decode_one_answer_in_a_batch(
    llama: Decoder, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of unknown layers, and none at all: then every pass reads the whole sequence."""
    for name in ("can_merge", "caches"):
        model = unlearned(build("llama"))
        if name == "caches":
            model._supports_default_dynamic_cache = lambda: False
        else:
            monkeypatch.setattr("tempertilt.serving.decoder.can_merge", lambda _: False)
        decoder = Decoder(model, NoTexts(), frozenset())
        rows = [Row(decoder, 4, 5, 1), Row(decoder, 9, 3, 2)]
        with running(decoder) as engine:
            finish(engine, *rows)
        for row in rows:
            row.check(model)
    assert max(sizes) == 1


class Broken:
    """A model that fails in its second pass, and then works."""

    def __init__(self, model: Any) -> None:
        self._model, self.passes = model, 0
        self.forward = model.forward

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        self.passes += 1
        if self.passes == 2:
            raise ValueError("broken")
        return self._model(**inputs)


def test_a_failure_is_given_to_its_answers_and_the_engine_lives() -> None:
    model = unlearned(build("llama"))
    decoder = Decoder(Broken(model), NoTexts(), frozenset())
    failed, fine = [Row(decoder, 4, 5, 1), Row(decoder, 6, 5, 2)], Row(decoder, 5, 5, 3)
    with running(decoder) as engine:
        finish(engine, *failed)
        assert [str(row.pieces[-1].error) for row in failed] == ["broken"] * 2
        finish(engine, fine)
    fine.check(model)


def test_too_many_wait(llama: Decoder) -> None:
    with running(llama, max_batch_size=1, max_waiting=2) as engine:
        engine.submit([Row(llama, 4, 90, 1).answer])
        wait_until(lambda: engine.running == 1)
        waiting = [Row(llama, 4, 3, i) for i in (2, 3)]
        engine.submit([row.answer for row in waiting])
        with pytest.raises(BusyError, match="2 answers wait"):
            engine.submit([Row(llama, 4, 3, 4).answer])
        engine.cancel([waiting[0].answer])
        assert engine.waiting == 1
        engine.submit([Row(llama, 4, 3, 4).answer])
    with pytest.raises(BusyError, match="shutting down"):
        engine.submit([])


def test_numbers_of_a_prompt_come_first_and_no_token_may_follow(llama: Decoder) -> None:
    row = Row(llama, 6, 0, 1, score_prompt=True)
    with running(llama) as engine:
        finish(engine, row)
    ids = torch.tensor([row.answer.prompt])
    with torch.inference_mode():
        logprobs = llama.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    scores, end = row.pieces
    assert end.finish_reason == "length" and end.length == 0
    assert [token.id for token in scores.tokens] == row.answer.prompt
    wanted = logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
    assert [token.logprob for token in scores.tokens[1:]] == pytest.approx(wanted, abs=1e-4)
