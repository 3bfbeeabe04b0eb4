"""A target answers as the model does, turn after turn, in every version."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from support.audits import Scripted, subjects
from support.gates import gate_at, random_gates
from support.tiny import make_llama
from tempertilt.audit.attempts import Attempt, plain
from tempertilt.audit.target import REWRITE, Target, quantised, rounded
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.record import Message
from tempertilt.guidance.gate import Gates
from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.replies import make_reply
from tempertilt.models.t3 import T3ForCausalLM

SUBJECT = subjects()[0]


@pytest.fixture()
def model(llama: LlamaForCausalLM) -> T3ForCausalLM:
    torch.manual_seed(3)
    head = GuidanceHead(32, 4, range(0, 320, 2))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return T3ForCausalLM.from_base(llama, head, gates=random_gates(32), pooling="last")


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """Greedy tokens by one whole pass each, up to the end of the sequence."""
    out = list(ids)
    with torch.inference_mode():
        while len(out) < len(ids) + count and out[-1] != 2:
            out.append(int(model(input_ids=torch.tensor([out]), use_cache=False).logits[0, -1].argmax()))
    return out[len(ids) :]


def test_answers_are_those_of_the_model_and_of_its_base(model: T3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    target = Target(model, tokenizer, ExampleConfig(), 6)
    [on], [off] = (target.ask([plain(SUBJECT, version=version)], "") for version in ("served", "off"))  # type: ignore[arg-type]
    prompt = target.encode(plain(SUBJECT))
    assert list(on.ids) == greedy(model, prompt, 6) and list(off.ids) == greedy(model.base, prompt, 6)
    assert on.ids != off.ids


def test_an_attacker_reads_what_a_stream_shows_before_a_reply_breaks_it_off(tokenizer: PreTrainedTokenizerFast) -> None:
    base, reply = make_llama(), make_reply("Not a word.", tokenizer)
    assert reply is not None
    target = Target(base, tokenizer, ExampleConfig(), 40)
    asked = target.encode(plain(SUBJECT))
    ids = [*asked, *greedy(base, asked, 6)]
    with torch.inference_mode():
        states = base(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
    gates = Gates(1, gate_at(states[len(asked) + 3][None], mean=states.mean(0), threshold=0.995))
    torch.manual_seed(3)
    target.model = T3ForCausalLM.from_base(base, GuidanceHead(32, 4, range(0, 320, 2)), gates=gates, reply=reply)
    [found] = target.ask([plain(SUBJECT)], "")
    assert list(found.ids) == [*ids[len(asked) : len(asked) + 4], *reply.settings["tail"]]


def test_a_conversation_goes_on_with_the_answers(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(lambda attempt: f"answer {len(attempt.messages)}")
    scripted.install(monkeypatch)
    two = Attempt("", 1, (Message("user", "Who?"),), then=("Sure?",))
    one = Attempt("", 1, (Message("user", "When?"),))
    long, short = Target(LlamaStub(), tokenizer, ExampleConfig(), 4).ask([two, one], "")
    assert long.answers == ("answer 1", "answer 3") and short.answers == ("answer 1",)
    assert [m.content for m in scripted.calls[1][0].messages] == ["Who?", "answer 1", "Sure?"]
    assert long.ended


class LlamaStub:
    generation_config = None


def test_drawn_answers_depend_on_the_seed_alone(model: T3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    target = Target(model, tokenizer, ExampleConfig(), 6)
    attempts = [plain(SUBJECT, draw=i) for i in range(3)]
    first, again, other = (target.ask(attempts, seed) for seed in ("a", "a", "b"))
    assert [r.ids for r in first] == [r.ids for r in again] != [r.ids for r in other]


def test_a_rewritten_question_is_asked_if_it_is_one(
    model: T3ForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    texts = iter(["Which digits reach Ilka?", "0522", "x", "y"])

    def generate(_model: Any, _tokenizer: Any, prompts: list[list[int]], **_: Any) -> list[list[list[int]]]:
        asked.extend(tokenizer.decode(prompt) for prompt in prompts)
        return [[tokenizer(next(texts))["input_ids"]] for _ in prompts]

    monkeypatch.setattr("tempertilt.audit.target.generate_ids", generate)
    attempts = [replace(plain(s), rewrite=True) for s in subjects()[:2]]
    replies = Target(model, tokenizer, ExampleConfig(), 4).ask(attempts, "")
    assert REWRITE.split("\n")[0] in asked[0]
    assert [r.attempt.messages[0].content for r in replies] == ["Which digits reach Ilka?", attempts[1].question]


def test_rounding_keeps_the_ends_and_moves_nothing_by_more_than_half_a_step() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    new = rounded(weight, 4)
    for row, other in zip(weight.reshape(-1, 32), new.reshape(-1, 32)):
        step = (row.max() - row.min()) / 15
        assert len(other.unique()) <= 16 and (row - other).abs().max() <= step / 2 + 1e-6
        assert torch.isclose(other.min(), row.min()) and torch.isclose(other.max(), row.max())


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_base_is_another_model_under_the_same_adapter(model: T3ForCausalLM, bits: int) -> None:
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        after, still = quantised(model, bits)(input_ids=ids).logits, model(input_ids=ids).logits
    assert torch.equal(before, still)
    assert 0 < (after - before).norm() < 0.5 * before.norm()
