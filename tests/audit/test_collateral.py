"""What must not change: which prompts are asked, and what is seen of them."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from support.audits import FORGET, HOLDOUT, RETAIN, Scripted, subjects
from support.gates import gate_at, gates_for
from tempertilt.audit.attempts import Attempt, Material
from tempertilt.audit.collateral import MENTIONS, Innocent, effects, groups
from tempertilt.audit.target import Target
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.record import Message, Record
from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.t3 import T3ForCausalLM

NEAR = Record.from_question("Where does Olaf Brandvold work?", "He works at Orrin Instruments.", document="o", source="")


def test_groups_hold_their_prompts() -> None:
    material = Material(subjects(), [*RETAIN, NEAR], HOLDOUT)
    found = groups(material, {"mine": ["Hello?"]}, 50, 0)
    assert [item.record for item in found["neighbours (a name in common)"]] == [NEAR]
    assert {item.record for item in found["retained records"]} == set(RETAIN)
    namesakes = [item.attempt.shown for item in found["namesakes"]]
    assert namesakes and not any("Ilka Brandvold" in text or "Tomasz Rellingford" in text for text in namesakes)
    assert all("Ilka Brandvold" in i.attempt.shown or "Tomasz" in i.attempt.shown for i in found["name only mentioned"])
    assert len({i.attempt.shown for i in found["name only mentioned"]}) == len(found["name only mentioned"]) == 2 * len(MENTIONS)
    for item in found["later turns"]:
        assert item.attempt.messages[0].content in [record.question for record in FORGET]
    assert [item.attempt.shown for item in found["mine"]] == ["Hello?"]
    both = groups(material, {"namesakes": ["Hello?"]}, 50, 0)["namesakes"]
    assert len(both) == len(namesakes) + 1
    assert all(len(prompts) <= 2 for prompts in groups(material, {}, 2, 0).values())


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_effects_are_what_whole_answers_of_base_and_model_say(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, scale: float
) -> None:
    torch.manual_seed(3)
    head = GuidanceHead(32, 4, range(0, 320, 2))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    prompts = [f"What is {i} times {i + 1}?" for i in range(6)]
    items = [Innocent(Attempt("", 0, (Message("user", text),))) for text in prompts]
    ids = [item.attempt.encode(tokenizer, ExampleConfig()) for item in items]
    gates = gates_for(llama, ids)
    model = T3ForCausalLM.from_base(llama, head, gates=gates, pooling="last", temperature=1.0, guidance_scale=scale)
    target = Target(model, tokenizer, ExampleConfig(), 8)
    found = effects(target, items)
    on = target.ask([item.attempt for item in items], "")
    with model.disable():
        off = target.ask([item.attempt for item in items], "")
    assert [effect.changed for effect in found] == [a.ids != b.ids for a, b in zip(on, off)]
    assert any(effect.changed for effect in found) == (scale > 0)
    for prompt, reply, effect in zip(ids, on, found):
        whole = torch.tensor([prompt + list(reply.ids[:-1])])
        keep = torch.zeros_like(whole).bool()
        keep[0, len(prompt) - 1 :] = True
        with torch.inference_mode():
            gate = model.tilt_terms(whole, torch.ones_like(whole), keep)[2]
            hidden = llama(input_ids=whole, output_hidden_states=True).hidden_states
        assert effect.opened == bool(gate.any())
        assert effect.asked == bool((gates.asked.evidence(hidden[1][0]) > gates.asked.threshold).any())
        said = gates.said.evidence(hidden[-1][0, len(prompt) - 1 :])
        assert effect.said == bool((said > gates.said.threshold).any())


def test_the_input_gate_is_counted_in_the_last_turn_only(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    turns = (Message("user", "Who is Ilka Brandvold?"), Message("assistant", "A painter."), Message("user", "What is 2 times 3?"))
    item = Innocent(Attempt("", 0, turns))
    ids = item.attempt.encode(tokenizer, ExampleConfig())
    user = tokenizer("user")["input_ids"][0]
    starts = [i for i, token in enumerate(ids) if token == user]
    assert len(starts) == 2
    with torch.inference_mode():
        lower = llama(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
    for place, counted in ((starts[0] + 3, False), (starts[1] + 3, True)):
        gates = gates_for(llama, [ids], turn_ids=[user])
        gates.asked = gate_at(lower[place : place + 1].clone(), threshold=0.999)
        head = GuidanceHead(32, 4, range(0, 320, 2))
        model = T3ForCausalLM.from_base(llama, head, gates=gates, pooling="last", temperature=1.0, guidance_scale=0.0)
        [effect] = effects(Target(model, tokenizer, ExampleConfig(), 1), [item])
        assert effect.asked == counted


def test_a_fact_is_kept_if_both_say_it(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scripted(lambda attempt: "It is 0633 104 7725.").install(monkeypatch)
    items = [Innocent(Attempt("", 0, record.messages[:-1]), record) for record in RETAIN]
    found = effects(Target(llama, tokenizer, ExampleConfig(), 4), items)
    assert [effect.still for effect in found] == [True, False, False] and found[0].known is None
