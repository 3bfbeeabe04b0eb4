"""The logits processor of replies without an engine: requests that come, go, change places and are taken up again."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from support.gates import random_gates
from tempertilt.guidance.gate import EVENTS
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.pooling import scan
from tempertilt.guidance.reply import Reply, reply_logits
from tempertilt.integrations.vllm.choices import Choices

NAME = "tempertilt.integrations.vllm.replies"
VOCAB, LENGTH, STEPS, SEATS = 24, 200, 170, 4
HEADER, ANSWER, TAIL = [7, 8], [20, 21, 20, 22, 2], [10, 20, 21, 20, 22, 2]


class Direction(Enum):
    """vLLM's names of moves."""

    UNIDIRECTIONAL = 1
    SWAP = 2


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, with the three names that it takes from vLLM."""
    stub: Any = ModuleType("vllm.v1.sample.logits_processor")
    stub.BatchUpdate, stub.LogitsProcessor, stub.MoveDirectionality = SimpleNamespace, object, Direction
    for name in ("vllm", "vllm.v1", "vllm.v1.sample"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


def guidance() -> Guidance:
    head = GuidanceHead(8, 2, range(VOCAB))
    return Guidance(head, random_gates(8), pooling="last", reply=Reply("no", HEADER, ANSWER, TAIL))


class Request:
    """A text with events, and what whole passes say of it at each position.

    Attributes:
        latest: `(T, 5)` positions of the latest events.
        expected: `(T,)` the reply's next token, -1 for none.
    """

    def __init__(self, model: Guidance, draw: random.Random) -> None:
        pieces = [HEADER, ANSWER, TAIL, HEADER + ANSWER[:3], TAIL[:2], [5], [7], [20, 21]]
        self.tokens: list[int] = []
        while len(self.tokens) < LENGTH:
            self.tokens += draw.choice(pieces)
        del self.tokens[LENGTH:]
        events = torch.tensor([[draw.random() < 0.08 for _ in range(EVENTS)] for _ in range(LENGTH)])
        memory = scan(torch.zeros(1, LENGTH, 0), None, events[None], model.follows(torch.tensor([self.tokens])))
        reply = model.read(memory).reply
        assert reply is not None
        self.latest, self.expected = memory.latest[0], reply[0]
        self.prompt = self.tokens[: draw.randint(1, LENGTH - STEPS)]
        self.output: list[int] = []

    @property
    def position(self) -> int:
        return len(self.prompt) + len(self.output)


def come_and_go(seats: list[Request], waiting: list[Request], draw: random.Random) -> SimpleNamespace:
    """An update of the batch, as the engine makes it; `seats` are the requests afterwards."""
    removed, added, moved = [], [], []
    if len(seats) > 1 and draw.random() < 0.3:  # over, or preempted: the last takes the empty place
        place = draw.randrange(len(seats))
        removed.append(place)
        waiting.append(seats[place])
        last = seats.pop()
        if place < len(seats):
            seats[place] = last
            moved.append((len(seats), place, Direction.UNIDIRECTIONAL))
    elif waiting and len(seats) < SEATS:
        request = waiting.pop(0)
        added.append((len(seats), None, request.prompt, request.output))
        seats.append(request)
    if len(seats) > 1 and draw.random() < 0.3:
        one, other = draw.sample(range(len(seats)), 2)
        seats[one], seats[other] = seats[other], seats[one]
        moved.append((one, other, Direction.SWAP))
    return SimpleNamespace(removed=removed, added=added, moved=moved)


def test_every_row_gets_its_own_next_token(replies: Any) -> None:
    """Whatever has become of the batch; and all rows that go on by one token are followed at once."""
    draw, model, config = random.Random(1), guidance(), SimpleNamespace()
    rows = replies.ReplyRows(Choices({"": model}), config)
    engine = SimpleNamespace(model_config=SimpleNamespace(hf_config=config))
    processor = replies.ReplyProcessor(engine, torch.device("cpu"), False)
    calls: list[int] = []
    follow = rows.follow
    rows.follow = lambda tokens, before, row=None: calls.append(len(tokens)) or follow(tokens, before, row)
    waiting, seats = [Request(model, draw) for _ in range(8)], []
    said = silent = 0
    for step in range(STEPS):
        update = come_and_go(seats, waiting, draw) if step % 2 == 0 else None
        processor.update_state(update)
        here = [request.position - 1 for request in seats]
        latest, expected = (
            torch.stack([getattr(request, name)[place] for request, place in zip(seats, here)]) for name in ("latest", "expected")
        )
        tokens = torch.tensor([float(request.tokens[place]) for request, place in zip(seats, here)])
        rows.note(latest, torch.tensor(here).float() + 1, tokens)
        logits = torch.randn(len(seats), VOCAB)
        assert torch.equal(processor.apply(logits), reply_logits(logits, expected))
        assert calls == [len(seats)] or update is not None
        calls.clear()
        said, silent = said + int((expected >= 0).sum()), silent + int((expected < 0).sum())
        for request in seats:
            request.output.append(request.tokens[request.position])
    assert said > 50 and silent > 50


def test_tokens_of_the_host_go_to_the_device_of_the_guidance(replies: Any) -> None:
    """`meta` stands for a GPU: it does not compute with tensors of the CPU either."""
    model = guidance().to("meta")
    rows = replies.ReplyRows(Choices({"": model}), SimpleNamespace())
    rows.note(*(torch.zeros(2, *shape, device="meta") for shape in ((EVENTS,), (), ())))
    before: Tensor = replies.Sequence([7, 8], [20, 21]).before(rows, 0, 4)
    assert before.device.type == "meta" and before.shape == (rows.numbers,)
