"""Several models in one engine, without an engine: choosing, naming, the salt of a request, and what the worker tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from support.gates import random_gates
from tempertilt.errors import ConfigError
from tempertilt.guidance.composition import Composition
from tempertilt.guidance.gate import EVENTS
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.pooling import Memory
from tempertilt.guidance.reply import FORMS, SURE, Reply
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.integrations.vllm import hf_overrides
from tempertilt.integrations.vllm.choices import MOST_NAMES, NOBODY, Choices, Width, width_of
from tempertilt.integrations.vllm.naming import NameModel, name_model
from tempertilt.integrations.vllm.options import check_overrides, model_of, models_of
from tempertilt.integrations.vllm.scheduler import salt_by_model
from tempertilt.integrations.vllm.worker import _TellsModels

D, VOCAB, N = 16, 12, 60


def part(seed: int, rank: int, pooling: str = "mean", reply: Reply | None = None, gated: bool = True) -> Guidance:
    torch.manual_seed(seed)
    head = GuidanceHead(D, rank, [2, 5, 6, 9])
    with torch.no_grad():
        head.B.normal_()
    guidance = Guidance(head, random_gates(D, seed=seed) if gated else None, TiltConfig(1.5, 0.5, 0.3), pooling, reply)
    return guidance.requires_grad_(False)


def models() -> dict[str, Guidance | Composition | None]:
    reply = Reply("no", [7, 8], [3, 4, 1], [5, 3, 4, 1])
    together = Composition({"x": part(4, 2), "y": part(5, 3)})
    return {
        "mean": part(1, 3),
        "last": part(2, 4, "last"),
        "said": part(3, 2, reply=reply),
        "parts": together,
        "open": part(6, 2, gated=False),
        "base": None,
    }


def memory(guidance: Guidance | Composition, means: Tensor, latest: Tensor, position: Tensor, ends: Tensor | None) -> Memory:
    width = width_of(guidance)
    own = None if ends is None or not width.ends else ends[:, : width.ends]
    return Memory(means[:, : width.rank], position, latest[:, : width.kinds], own)


def test_each_row_is_that_of_its_own_model() -> None:
    """Memory, gates, logits and replies of mixed rows are those of each model by itself."""
    torch.manual_seed(0)
    made = models()
    choices = Choices(made, end=1)
    assert choices.width == Width(5, 2 * EVENTS, 2, FORMS)
    names = [(*made, "nobody", None)[i % 8] for i in range(N)]
    which = choices.which([(name, 1) for name in names], N, torch.device("cpu"))
    last, lower, logits, ids = torch.randn(N, D), torch.randn(N, D), torch.randn(N, VOCAB), torch.randint(0, VOCAB, (N,))
    groups = choices.groups(which)
    projected, events = choices.observe(last, lower, ids, groups)
    means, position = torch.randn(N, 5), torch.randint(20, 40, (N,)).float()
    latest = torch.randint(0, 20, (N, 2 * EVENTS)).float()
    gates = choices.read(means, latest, position, groups)
    before = torch.randint(0, 3, (N, FORMS)).float()
    ends = choices.follow(ids[:, None], before, groups)
    replies = choices.replies(latest, position, ends, groups)
    guided = choices.guide(logits, last, means, gates, which)
    opened = closed = said = 0
    for i, name in enumerate(names):
        row = slice(i, i + 1)
        guidance = made.get(name or "")
        if name not in made:
            assert guided[i].argmax() == 1 and sorted(guided[i].tolist())[-2] == -SURE
            continue
        if guidance is None:
            assert torch.equal(guided[i], logits[i]) and not projected[i].any() and not gates[i].any() and replies[i] == -1
            continue
        new = guidance.observe(last[row], lower[row], ids[row])
        torch.testing.assert_close(projected[row, : new.projected.shape[1]], new.projected, rtol=0, atol=1e-6)
        assert new.events is None or torch.equal(events[row, : new.events.shape[1]], new.events)
        context = guidance.read(memory(guidance, means[row], latest[row], position[row], None))
        wanted = guidance.guide(logits[row], last[row], context.pooled, context.gate)
        torch.testing.assert_close(guided[row], wanted, rtol=0, atol=1e-6)
        if context.gate is not None:
            assert torch.equal(gates[row, : context.gate.numel()], context.gate.reshape(1, -1))
            opened, closed = opened + int(context.gate.any()), closed + int(not context.gate.any())
        if name == "said":
            [follow] = guidance.follows(ids[row, None])
            assert torch.equal(ends[row], follow(torch.ones(1, 1, dtype=torch.long), before[row])[:, -1])
            reply = guidance.read(memory(guidance, means[row], latest[row], position[row], ends[row])).reply
            assert reply is not None and replies[i] == reply[0]
            said += int(reply[0] >= 0)
        else:
            assert replies[i] == -1
    assert opened > 5 and closed > 5 and said > 1


def test_one_model_needs_no_choice() -> None:
    guidance = part(1, 3)
    choices = Choices({"": guidance})
    assert not choices.chooses
    last, lower, ids = torch.randn(4, D), torch.randn(4, D), torch.arange(4)
    new, (projected, events) = guidance.observe(last, lower, ids), choices.observe(last, lower, ids, choices.groups(None))
    assert torch.equal(projected, new.projected) and torch.equal(events, new.events)  # type: ignore[arg-type]
    logits = torch.randn(4, VOCAB).bfloat16()
    assert choices.guide(logits, last, torch.randn(4, 3), torch.zeros(4, 1), None) is logits  # all gates closed: as they are
    with pytest.raises(ConfigError, match="the engine has one model"):
        choices.add("b", part(2, 3))


def test_tokens_of_a_batch_in_its_order() -> None:
    choices = Choices({"a": part(1, 3), "b": None})
    which = choices.which([("b", 2), ("a", 3), (None, 1), ("zed", 1)], 10, torch.device("cpu"))
    assert which.tolist() == [1, 1, 0, 0, 0] + [NOBODY] * 5
    assert choices.which([], 3, torch.device("cpu")).tolist() == [NOBODY] * 3
    assert choices.which([("a", 5)], 3, torch.device("cpu")).tolist() == [0] * 3


def test_models_come_and_go() -> None:
    choices = Choices({"a": part(1, 3), "base": None})
    choices.add("b", part(2, 2))
    assert choices.number("b") == 2 and choices.number("a") == 0
    for name in ("a", "base", ""):
        with pytest.raises(ConfigError, match="must be another one"):
            choices.add(name, part(3, 2))
    with pytest.raises(ConfigError, match="needs Width"):
        choices.add("c", part(3, 4))
    with pytest.raises(ConfigError, match="needs Width"):
        choices.add("c", part(3, 2, reply=Reply("no", [7], [3, 1], [3, 1])))
    choices.remove("b")
    assert choices.number("b") == NOBODY
    with pytest.raises(ConfigError, match="has or had the name"):  # what the cache remembers of its requests is of the first
        choices.add("b", part(2, 2))
    for name in ("b", "c"):
        with pytest.raises(ConfigError, match=f"no model '{name}'; must be one of a, base"):
            choices.remove(name)


def test_a_name_that_a_request_gave_before_is_no_model_s() -> None:
    """The engine's cache holds what it read for that request, with nothing remembered of it."""
    choices = Choices({"a": part(1, 3), "base": None})
    assert choices.which([("b", 1), (None, 1)], 2, torch.device("cpu")).tolist() == [NOBODY, NOBODY]
    with pytest.raises(ConfigError, match="or a request gave it"):
        choices.add("b", part(2, 2))
    for i in range(MOST_NAMES):
        choices.number(f"name {i}")
    assert choices.number("last") == NOBODY and choices.number("a") == 0
    with pytest.raises(ConfigError, match="or a request gave it"):  # it may have been one of those that are not remembered
        choices.add("last", part(2, 2))


def test_gates_at_different_depths_are_refused() -> None:
    other = part(2, 3)
    assert other.gates is not None
    other.gates.layer = 2
    with pytest.raises(ConfigError, match="those of 'a' after 1, those of 'b' after 2"):
        Choices({"a": part(1, 3), "b": other})


@pytest.mark.parametrize(
    "content",
    [
        {"models": {}},
        {"models": {"base": {}}},
        {"models": {"a": {"adapter": 3}}},
        {"models": {"a": {"adapter": "x", "colour": 1}}},
        {"models": {"a": {"adapter": "x", "check_base": False}}},
        {"models": {"": {"adapter": "x"}}},
        {"models": {"a": {"adapter": "x"}}, "reply": "guess"},
        {"models": ["a"]},
    ],
)
def test_bad_models_are_refused(content: Any) -> None:
    with pytest.raises(ConfigError):
        check_overrides(content)


def test_overrides_of_several_models() -> None:
    served: dict[str, Any] = {"a": "/x/a", "hr": {"one": "/x/1", "two": "/x/2"}, "base": None}
    made = hf_overrides(None, "LlamaForCausalLM", models=served)["tempertilt"]
    assert models_of(check_overrides(made)) == {
        "a": {"adapter": "/x/a"},
        "hr": {"adapters": {"one": "/x/1", "two": "/x/2"}},
        "base": {},
    }
    alone = hf_overrides("/x/a", "LlamaForCausalLM", temperature=2.0)["tempertilt"]
    assert list(models_of(alone)) == [""]
    with pytest.raises(ConfigError, match="unknown tempertilt options temperature"):  # parts have their own
        hf_overrides(None, "LlamaForCausalLM", models=served, temperature=2.0)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given,expected",
    [
        ({"model": "a"}, {"model": "a", "vllm_xargs": {"tempertilt": "a"}}),
        (
            {"model": "a", "vllm_xargs": {"tempertilt": "base", "k": 1}},
            {"model": "a", "vllm_xargs": {"k": 1, "tempertilt": "a"}},
        ),
        ({"vllm_xargs": {"tempertilt": "base"}}, {"vllm_xargs": {}}),
        ({"model": 3, "vllm_xargs": {"tempertilt": "base"}}, {"model": 3, "vllm_xargs": {}}),
        ({"model": "a", "vllm_xargs": 7}, {"model": "a", "vllm_xargs": {"tempertilt": "a"}}),
        (
            {"model": "a", "sampling_params": {"extra_args": {"tempertilt": "base"}}},
            {"model": "a", "vllm_xargs": {"tempertilt": "a"}, "sampling_params": {"extra_args": {"tempertilt": "a"}}},
        ),
        ({"sampling_params": {"extra_args": {"tempertilt": "base"}}}, {"sampling_params": {"extra_args": {}}}),
    ],
)
def test_the_model_s_name_stands_over_what_a_client_gives(given: Any, expected: Any) -> None:
    named, body = name_model(json.dumps(given).encode())
    assert json.loads(body) == expected and named == isinstance(given.get("model"), str)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_request_stays_as_it_is(body: bytes) -> None:
    assert name_model(body) == (True, body)


def test_a_twice_given_name_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body may hold a key twice, and parsers differ in which counts; what goes on has one."""
    _, body = name_model(b'{"model": "a", "model": "b", "vllm_xargs": {"tempertilt": "base"}}')
    assert body.count(b'"model"') == 1 and json.loads(body)["vllm_xargs"] == {"tempertilt": json.loads(body)["model"]}


def ask(path: str, parts: list[bytes], method: str = "POST") -> tuple[list[Mapping[str, Any]], list[bytes]]:
    """What comes back of a request in parts, and what bodies the application behind has seen."""
    seen: list[bytes] = []
    sent: list[Mapping[str, Any]] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        seen.append(message["body"])
        assert not message["more_body"]
        lengths = [int(value) for name, value in scope["headers"] if name == b"content-length"]
        assert lengths in ([len(message["body"])], [])

    messages = [{"type": "http.request", "body": each, "more_body": i < len(parts) - 1} for i, each in enumerate(parts)]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-length", b"%d" % sum(map(len, parts)))] if method == "POST" else []
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(NameModel(behind)(scope, receive, send))  # type: ignore[arg-type]
    return sent, seen


def test_requests_pass_with_their_model() -> None:
    sent, [body] = ask("/v1/completions", [b'{"model": "a", ', b'"prompt": "x"}'])
    assert not sent and json.loads(body) == {"model": "a", "prompt": "x", "vllm_xargs": {"tempertilt": "a"}}
    assert ask("/v1/models", [b""], "GET") == ([], [b""])
    assert ask("/tokenize", [b'{"prompt": "x"}'])[0] == []


def test_a_request_without_a_model_is_refused() -> None:
    sent, seen = ask("/v1/chat/completions", [b'{"messages": []}'])
    assert sent[0]["status"] == 400 and "model is missing" in json.loads(sent[1]["body"])["error"]["message"] and not seen


# --- engine -----------------------------------------------------------------------------------------------------------


class Request:
    """As the scheduler has it: keys of blocks are made of the salt."""

    def __init__(self, extra: dict[str, Any] | None, salt: str | None = None) -> None:
        self.sampling_params = SimpleNamespace(extra_args=extra)
        self.cache_salt = salt
        self.block_hashes: list[object] = []
        self.update_block_hashes()

    def update_block_hashes(self) -> None:
        self.block_hashes.append(self.cache_salt)


def test_the_salt_tells_models_apart() -> None:
    """Also where clients give salts of their own, made to look like another model's."""
    requests = [
        Request(extra, salt)
        for extra in ({"tempertilt": "a"}, {"tempertilt": "b"}, {}, None, {"tempertilt": ["a"]})
        for salt in (None, "", "x", '["b", null]')
    ]
    for request in requests:
        before = request.cache_salt
        salt_by_model(request)
        assert request.block_hashes == [request.cache_salt] and request.cache_salt != before
    keys = {(model_of(request.sampling_params.extra_args), str(request.cache_salt)) for request in requests}
    assert len({salt for _, salt in keys}) == len(keys) == 12  # two models and none, four salts each


def test_the_worker_tells_the_models_of_what_is_scheduled() -> None:
    told: list[Any] = []

    class Model:
        def follow_requests(self, requests: Any) -> None:
            self.requests = requests

    class Worker:
        def __init__(self) -> None:
            self.model = Model()
            states = {
                name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra))
                for name, extra in (("r1", {"tempertilt": "a"}), ("r2", None), ("r3", {"tempertilt": "b"}))
            }
            self.model_runner = SimpleNamespace(requests=states, input_batch=SimpleNamespace(req_ids=["r3", "r1", "r2"]))

        def load_model(self) -> None: ...

        def get_model(self) -> Model:
            return self.model

        def execute_model(self, scheduler_output: Any) -> None:
            told.append(self.model.requests())

    class Telling(_TellsModels, Worker): ...

    worker = Telling()
    worker.load_model()
    assert worker.model.requests() == []
    worker.execute_model(SimpleNamespace(num_scheduled_tokens={"r1": 1, "r2": 5, "r3": 2}))
    assert told == [[("b", 2), ("a", 1), (None, 5)]]
    assert worker.model.requests() == []
