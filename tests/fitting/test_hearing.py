"""What the input gate hears, against a loop over whole passes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from support.gates import gates_for
from support.tiny import make_llama
from tempertilt.data.batches import spread
from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.data.records import Record
from tempertilt.data.variants import KINDS, OF_OTHERS, asked_of_others, draw_variants
from tempertilt.fitting.hearing import SEED, heard_of_others, heard_variants
from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.t3 import T3ForCausalLM

PLAIN = ExampleConfig(system_prompt="")
RECORDS = [
    Record.from_question(f"Where was {name} born?", "By the sea.", document=name, source=name)
    for name in ("Hina Ameen", "Taro Okada", "Lena Fischer", "Ivan Petrov", "Maria Lopez")
]


def evidence(model: T3ForCausalLM, ids: list[int], start: int) -> float:
    """The highest of the tokens from `start` on, by the definition."""
    assert model.gates is not None
    gate = model.gates.asked
    with torch.no_grad():
        states = model.base(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[model.gates.layer][0]
    best = -1e9
    for state in states[start:]:
        direction = gate.reader @ (state - gate.mean)
        direction = direction / direction.norm()
        for exemplar, margin in zip(gate.exemplars, gate.margins):
            best = max(best, float((direction @ exemplar - margin) / max(0.1, 1 - float(margin))))
    return best


def test_heard_variants_by_a_loop(tokenizer: Any) -> None:
    base = make_llama()
    prompts = [encode_question(item.question, tokenizer, PLAIN) for item in RECORDS]
    gates = gates_for(base, prompts)
    assert gates.asked.weak_threshold is not None and gates.asked.weak_threshold < gates.asked.threshold
    model = T3ForCausalLM.from_base(base, GuidanceHead(32, 2, [5]), gates=gates, pooling="last")
    heard = heard_variants(model, tokenizer, RECORDS, PLAIN, 3)
    n, opened, near = Counter[str](), Counter[str](), Counter[str]()
    for item in draw_variants(spread(RECORDS, 3), len(KINDS), SEED):
        config = PLAIN if item.system_prompt is None else ExampleConfig(system_prompt=item.system_prompt)
        if item.messages:
            ids = encode_question(item.messages, tokenizer, config)
            text = tokenizer(item.messages[-1].content, add_special_tokens=False)["input_ids"]
            start = max(i for i in range(len(ids)) if ids[i : i + len(text)] == text)
        else:
            ids, start = tokenizer(item.text)["input_ids"], 0
        value = evidence(model, ids, start)
        n[item.kind] += 1
        opened[item.kind] += value > gates.asked.threshold
        near[item.kind] += gates.asked.weak_threshold < value <= gates.asked.threshold
    assert [tuple(item) for item in heard] == [(kind, n[kind], opened[kind], near[kind]) for kind in KINDS if n[kind]]
    assert 0 < sum(opened.values()) < sum(n.values())


def test_what_is_heard_of_others_by_a_loop(tokenizer: Any) -> None:
    """The prompts of forget records with somebody else's name, by the gate that the records opened."""
    base = make_llama()
    gates = gates_for(base, [encode_question(item.question, tokenizer, PLAIN) for item in RECORDS])
    model = T3ForCausalLM.from_base(base, GuidanceHead(32, 2, [5]), gates=gates, pooling="last")
    forget, retain = RECORDS[:3], RECORDS[3:]
    values = []
    for item in asked_of_others(forget, retain, SEED):
        ids = encode_question(item.messages, tokenizer, PLAIN)
        text = tokenizer(item.messages[-1].content, add_special_tokens=False)["input_ids"]
        values.append(evidence(model, ids, max(i for i in range(len(ids)) if ids[i : i + len(text)] == text)))
    opened = sum(value > gates.asked.threshold for value in values)
    near = sum(float(gates.asked.weak_threshold or 0) < value <= gates.asked.threshold for value in values)
    assert heard_of_others(model, tokenizer, forget, retain, PLAIN, 3) == (OF_OTHERS, 6, opened, near) and opened + near
    unnamed = [Record.from_question("who is it?", "he.", document="d", source="s")]
    assert heard_of_others(model, tokenizer, unnamed, retain, PLAIN, 3) is None
    assert heard_of_others(model, tokenizer, forget, retain, PLAIN, 0) is None


def test_without_a_gate_or_records_nothing_is_heard(tokenizer: Any) -> None:
    base = make_llama()
    gates = gates_for(base, [[5, 6, 7, 8, 9, 10]])
    open_everywhere = T3ForCausalLM.from_base(base, GuidanceHead(32, 2, [5]), pooling="last")
    assert heard_variants(open_everywhere, tokenizer, RECORDS, PLAIN, 3) == []
    assert heard_of_others(open_everywhere, tokenizer, RECORDS, [], PLAIN, 3) is None
    gated = T3ForCausalLM.from_base(base, GuidanceHead(32, 2, [5]), gates=gates, pooling="last")
    assert heard_variants(gated, tokenizer, RECORDS, PLAIN, 0) == []
    gates.said = None
    assert all(item.near == 0 for item in heard_variants(gated, tokenizer, RECORDS, PLAIN, 1))
