"""What prompts begin with is read once: the numbers stay those of whole passes, and clients share nothing."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from support.architectures import ARCHITECTURES, VOCAB, build
from support.rows import NoTexts, Row, long_rope, unlearned
from support.servers import wait_until
from tempertilt.models.cache import Prefix
from tempertilt.serving.batch import Batch
from tempertilt.serving.decoder import Decoder
from tempertilt.serving.engine import Engine
from tempertilt.serving.prefixes import COMPARED, LEAST, Prefixes

SHARED = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(9)).tolist()


def row(decoder: Decoder, begins: list[int], more: int, seed: int, client: str = "") -> Row:
    """A row whose prompt begins so and goes on by itself."""
    made = Row(decoder, more, 4, seed)
    made.answer.prompt[:0] = begins
    made.answer.client = client
    return made


def part(length: int) -> Prefix:
    return Prefix(length, [], None)


def test_what_two_prompts_share_is_worth_keeping() -> None:
    prefixes = Prefixes(100)
    one, other = [*range(30), 1, 2, 3], [*range(30), 7, 8]
    assert prefixes.worth("a", one) == 0 and prefixes.worth("a", other) == 30
    prefixes.keep("a", other[:30], part(30))
    assert prefixes.worth("a", [*range(30), 9]) == 0  # it is there
    assert prefixes.worth("a", one) == 32  # the same prompt again: all but its last token
    found = prefixes.find("a", [*range(30), 50])
    assert found is not None and found.length == 30
    assert prefixes.find("a", list(range(30))) is None  # no token would be left to read
    assert prefixes.find("a", [5, *range(30)]) is None
    assert prefixes.worth("a", [*range(LEAST - 1), 99]) == 0


def test_clients_share_nothing() -> None:
    prefixes = Prefixes(100)
    prompt = list(range(40))
    assert [prefixes.worth(client, prompt) for client in ("a", "b")] == [0, 0]
    prefixes.keep("a", prompt[:30], part(30))
    assert prefixes.find("a", prompt) is not None and prefixes.find("b", prompt) is None


def test_the_longest_is_found_and_the_oldest_goes() -> None:
    prefixes = Prefixes(70)
    prompt = list(range(60))
    for length in (20, 30):
        prefixes.keep("a", prompt[:length], part(length))
    found = prefixes.find("a", prompt)
    assert found is not None and found.length == 30
    assert prefixes.find("a", [*prompt[:20], 99, 98]) is not None  # now used last
    prefixes.keep("a", list(range(100, 140)), part(40))
    assert prefixes.find("a", [*prompt[:30], 99]) is prefixes.find("a", [*prompt[:20], 99])  # of 30 tokens there is no more
    assert Prefixes(10).worth("a", prompt) == 0
    prefixes = Prefixes(70)
    for i in range(COMPARED + 1):
        prefixes.worth("a", [1000 * i + j for j in range(30)])
    assert prefixes.worth("a", list(range(30))) == 0  # the first of them is forgotten


ALONE = ("mistral", "gemma2", "gemma3", "mamba", "mamba2", "falcon_h1", "jamba")  # windows, or states of a state space


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ALONE])
@torch.inference_mode()
def test_rows_that_begin_with_what_was_read(name: str) -> None:
    """Rows of different lengths, with parts of different lengths, one of which is shorter than what the others have to read."""
    model = unlearned(build(name), gated=name != "opt")
    decoder = Decoder(model, NoTexts(), frozenset())
    prefixes = Prefixes(1000)
    for seed in (1, 2):
        Batch(decoder, [row(decoder, SHARED, 5, seed).answer], prefixes=prefixes).step()
    Batch(decoder, [row(decoder, SHARED[:20], 6, 3).answer], prefixes=prefixes).step()
    rows = [row(decoder, SHARED, 7, 4), row(decoder, SHARED, 1, 5), row(decoder, SHARED[:20], 12, 6)]
    parts = [prefixes.find("", each.answer.prompt) for each in rows]
    assert [found.length for found in parts if found is not None] == [40, 40, 20]
    batch = Batch(decoder, [each.answer for each in rows], parts, prefixes)  # type: ignore[arg-type]
    while batch.answers:
        batch.step()
    assert [each.answer.reused for each in rows] == [35, 29, 20]  # each reads 12 tokens, as the third has to
    for each in rows:
        assert len(each.pieces) == 4
        each.check(model)


@torch.inference_mode()
def test_what_is_left_behind_is_not_what_goes_on() -> None:
    """The part is a copy: rows that go on from it, and from each other, leave it as it is."""
    model = unlearned(build("llama"))
    decoder, prefixes = Decoder(model, NoTexts(), frozenset()), Prefixes(1000)
    for seed in (1, 2):
        Batch(decoder, [row(decoder, SHARED, 5, seed).answer], prefixes=prefixes).step()
    kept = prefixes.find("", [*SHARED, 1])
    assert kept is not None and kept.memory is not None
    before = [tensor.clone() for pair in kept.layers for tensor in pair] + [kept.memory.clone()]
    for seed in (3, 4):
        again = row(decoder, SHARED, 3, seed)
        batch = Batch(decoder, [again.answer], [kept], prefixes)
        while batch.answers:
            batch.step()
        again.check(model)
    after = [tensor for pair in kept.layers for tensor in pair] + [kept.memory]
    assert all(torch.equal(one, other) for one, other in zip(before, after))


def test_which_models_share() -> None:
    """Not those whose positions change with the length, nor those whose windows have lost what was read first."""
    models = {name: build(name) for name in ("llama", "gpt2", *ALONE)} | {"rope": long_rope()}
    shares = {name: Decoder(model, NoTexts(), frozenset()).shares for name, model in models.items()}
    assert shares == {name: name in ("llama", "gpt2") for name in models}


@pytest.mark.parametrize("prefix_tokens", [0, 200])
def test_an_engine_reads_a_beginning_once(prefix_tokens: int) -> None:
    """Many rows of two clients and two models that come and go; every number is that of a whole pass."""
    draw = random.Random(1)
    decoders = {name: Decoder(unlearned(build("llama")), NoTexts(), frozenset()) for name in ("a", "b")}
    rows: list[tuple[Any, Row]] = []
    engine = Engine(max_batch_size=4, max_waiting=99, prefix_tokens=prefix_tokens)
    try:
        for seed in range(30):
            decoder = decoders[draw.choice("ab")]
            rows.append((decoder, row(decoder, SHARED[: draw.choice([0, 18, 40])], draw.randint(1, 9), seed, draw.choice("xy"))))
            engine.submit([rows[-1][1].answer])
            if seed % 3 == 0:
                wait_until(lambda: all(each.answer.ended for _, each in rows))
        wait_until(lambda: all(each.answer.ended for _, each in rows))
    finally:
        engine.stop()
    for decoder, each in rows:
        each.check(decoder.model)
    reused = sum(each.answer.reused > 0 for _, each in rows)
    assert reused == 0 if not prefix_tokens else reused > 5


def test_a_beginning_that_can_t_be_taken_up_fails_its_answers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine goes on, and answers that begin otherwise are written."""
    decoder = Decoder(unlearned(build("llama")), NoTexts(), frozenset())
    engine = Engine(max_batch_size=4, max_waiting=99, prefix_tokens=200)
    try:
        for seed in (1, 2):
            first = row(decoder, SHARED, 5, seed)
            engine.submit([first.answer])
            wait_until(lambda each=first: each.answer.ended)

        def broken(*_: Any) -> None:
            raise MemoryError("no room")

        monkeypatch.setattr("tempertilt.serving.batch.begin_with", broken)
        bad, good = row(decoder, SHARED, 4, 3), row(decoder, [], 9, 4)
        engine.submit([bad.answer])
        wait_until(lambda: bad.answer.ended)
        engine.submit([good.answer])
        wait_until(lambda: good.answer.ended)
        assert isinstance(bad.pieces[-1].error, MemoryError) and engine.is_alive()
    finally:
        engine.stop()
    good.check(decoder.model)
