"""What gates are made of: records, variants of their prompts, later turns, and tokens that are the records' own."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tempertilt.fitting.fit_gates as module
import tempertilt.fitting.later_turns as later_turns
from support.records import about_persons
from support.tiny import make_llama
from tempertilt.data.examples import Example, ExampleConfig, build_examples, encode_question
from tempertilt.data.records import Message, Record
from tempertilt.data.variants import (
    BY_NAME,
    OTHER_KINDS,
    OTHER_SYSTEM,
    Variant,
    about_strangers,
    asked_of_others,
    draw_variants,
    scrambles,
)
from tempertilt.fitting.features import FeatureConfig, FeatureStore, extract_features
from tempertilt.fitting.fit_gate import GateConfig, GateSettings
from tempertilt.fitting.fit_gates import GateInputs, GatesFit, encode_variant, fit_gates, variant_states
from tempertilt.fitting.token_states import TokenStates
from tempertilt.guidance.gate import Reader

PLAIN = ExampleConfig(system_prompt="")
LAYER = 1
CONFIG = GateConfig(gate=True, false_open=0.3)
NAMES = {"forget": ("Hina Ameen", "Taro Okada", "Lena Fischer"), "retain": ("Ivan Petrov", "Maria Lopez", "John Smith")}


def records(name: str) -> list[Record]:
    return about_persons(NAMES[name], name)


class Fitted:
    """Gates of a tiny random model, and the states of which they were made."""

    def __init__(self, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, config: GateConfig, **ratios: Any) -> None:
        self.model, self.tokenizer = make_llama(), tokenizer
        self.forget, self.retain = records("forget"), records("retain")
        examples = [build_examples(part, tokenizer, PLAIN) for part in (self.forget, self.retain)]
        every = [*examples[0], *examples[1]]
        store, pooling = FeatureStore(folder), FeatureConfig(pooling="last")
        features = extract_features(self.model, every, store, pooling, state_layer=LAYER, progress=False)[0]
        first = len(examples[0])
        parts = features.subset(range(first)), features.subset(range(first, len(every)))
        self.given: list[tuple[TokenStates, TokenStates]] = []
        original = module.fit_gate

        def fit_gate(forget: TokenStates, retain: TokenStates, settings: GateSettings, reader: Reader | None) -> Any:
            self.given.append((forget, retain))
            return original(forget, retain, settings, reader)

        monkeypatch.setattr(module, "fit_gate", fit_gate)
        self.forget_examples, self.retain_examples = examples
        special = ratios["ratios"](examples[0]) if ratios else None
        inputs = GateInputs(self.forget, self.retain, *examples, *parts, special)
        self.fit: GatesFit = fit_gates(self.model, tokenizer, inputs, config, PLAIN, LAYER)

    def states(self, ids: list[int], layer: int = LAYER) -> torch.Tensor:
        """`(n, d)` states after so many layers, by a whole pass; -1 = the last."""
        with torch.no_grad():
            return self.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]  # type: ignore[no-any-return]

    def question(self, *texts: str) -> list[int]:
        roles = ("user", "assistant") * len(texts)
        return encode_question([Message(role, text) for role, text in zip(roles, texts)], self.tokenizer, PLAIN)


def is_among(rows: torch.Tensor, states: TokenStates) -> bool:
    """Whether the end of `rows (n, d)`, more than its frame, is a text's."""
    same = (
        (5 < len(other) < len(rows) or len(other) == len(rows)) and torch.allclose(rows[-len(other) :], other.float(), atol=2e-2)
        for other in states.states
    )
    return any(same)


def test_states_of_the_input_gate(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget records, their variants, retain records, and retain questions after a turn about a forget record."""
    made = Fitted(tokenizer, tmp_path, monkeypatch, CONFIG)
    forget, retain = made.given[0]
    assert len(forget.states) == 9 + 9 * len(OTHER_KINDS) and forget.documents[:9] == [item.document for item in made.forget]
    assert forget.prompts is not None
    every = [one.input_ids.tolist() for one in (*made.forget_examples, *made.retain_examples)]
    common = max(n for n in range(20) if len({tuple(ids[:n]) for ids in every}) == 1)
    for one, states, count in zip(made.forget_examples, forget.states, forget.prompts):
        torch.testing.assert_close(states.float(), made.states(one.input_ids.tolist())[common:], atol=2e-2, rtol=1e-2)
        assert count == int(one.scored.argmax()) - common
    for item in draw_variants(made.forget, 66, 0, OTHER_KINDS):
        config = PLAIN if item.system_prompt is None else ExampleConfig(system_prompt=item.system_prompt)
        ids = encode_question(item.messages, tokenizer, config) if item.messages else tokenizer(item.text)["input_ids"]
        assert is_among(made.states(ids), forget)
    others = asked_of_others(made.forget, made.retain, 5)
    lines = [*scrambles(made.forget, 3), *about_strangers(4), *others]
    assert {line.record for line in others} >= set(range(5))
    documents = [item.document for item in made.retain]
    twice = [name for name in documents for _ in range(2)]
    named = [name for name in NAMES["retain"] for _ in range(1 + len(BY_NAME))]
    assert list(retain.documents) == [*documents, *twice, *named, *[None] * len(lines), *documents]
    for line in lines:
        ids = encode_question(line.messages, tokenizer, PLAIN) if line.messages else tokenizer(line.text)["input_ids"]
        assert is_among(made.states(ids), retain)
    replies = [later_turns.REPLIES[i % 3] for i in range(9)]
    for i in range(9):
        ids = made.question(made.forget[i].question, replies[i], made.retain[i].question)
        assert is_among(made.states(ids), retain)


def test_a_plain_text_is_heard_in_each_of_its_pieces(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be quoted from any place; so no piece leans on what another one says."""
    monkeypatch.setattr(module, "PIECE", 6)
    text = "Hina Ameen was born . Where was she ? Who is Hina Ameen and what does she write ? What of Hina Ameen ?"
    others = ["What does Ivan Petrov write ? Where was he born ? Who is Maria Lopez ?", "Where was John Smith born ?"]
    texts = {"forget": [text], "retain": others}
    made_of = {name: [Record.from_text(one, document=one, source=name) for one in some] for name, some in texts.items()}
    monkeypatch.setitem(globals(), "records", made_of.get)
    made = Fitted(tokenizer, tmp_path, monkeypatch, replace(CONFIG, variants=0, output_gate=False))
    forget = made.given[0][0]
    ids = tokenizer(text)["input_ids"]
    assert [len(states) for states in forget.states] == [6] * (len(ids) // 6) + ([len(ids) % 6] if len(ids) % 6 else [])
    assert set(forget.prompts or ()) == {0} and set(forget.documents) == {text}
    gate = made.fit.gates.asked
    evidence = gate.evidence(made.states(ids))
    assert all(float(piece.max()) > gate.threshold for piece in evidence.split(6) if len(piece) == 6)


def test_who_has_a_name_in_common_is_left_out_by_the_record(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A brother of somebody forgotten: without his other records nothing could tell the two apart."""
    monkeypatch.setitem(NAMES, "retain", ("Ivan Ameen", "Maria Lopez", "John Smith"))
    made = Fitted(tokenizer, tmp_path, monkeypatch, CONFIG)
    asked, said = made.given[0][1], made.given[1][1]
    assert asked.documents[:4] == ["Ivan Ameen, 0", "Ivan Ameen, 1", "Ivan Ameen, 2", "Maria Lopez"]
    assert "Ivan Ameen" not in asked.documents and "Ivan Ameen" in said.documents
    evidence = made.fit.asked.retain_evidence
    assert np.isfinite(evidence[:9]).all() and np.isneginf(evidence[9:15]).all()  # his variants come first


def test_without_variants_there_are_fewer_states(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Fitted(tokenizer, tmp_path, monkeypatch, replace(CONFIG, variants=0, output_gate=False))
    [(forget, retain)] = made.given
    assert len(forget.states) == 9 and len(retain.states) == 9 + 9 and made.fit.said is None and made.fit.gates.said is None
    assert made.fit.summary()["said"] is None


def test_variants_open_the_gate_that_was_made_of_them(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, written = [], ("HINA AMEEN", "Okada", "Mr. Fischer")
    for variants in (0, 4):
        made = Fitted(tokenizer, tmp_path / str(variants), monkeypatch, replace(CONFIG, variants=variants, output_gate=False))
        gate = made.fit.gates.asked
        texts = [f"{word} {name}?" for word in ("Where was", "What of", "Who is") for name in written]
        evidence = [float(gate.evidence(made.states(made.question(text))).max()) for text in texts]
        opened.append(sum(value > gate.threshold for value in evidence))
    assert opened[1] > opened[0]


def test_the_records_words_about_others_open_nothing(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody else is asked in these words is no sign of the records: the name is."""
    made = Fitted(tokenizer, tmp_path, monkeypatch, replace(CONFIG, output_gate=False))
    monkeypatch.setattr(module, "asked_of_others", lambda *_: [])
    without = Fitted(tokenizer, tmp_path / "without", monkeypatch, replace(CONFIG, output_gate=False))
    others = asked_of_others(made.forget, made.retain, 5)
    opened = []
    for fitted in (made, without):
        gate = fitted.fit.gates.asked
        opened.append(
            [
                float(gate.evidence(fitted.states(fitted.question(one.messages[0].content))).max()) > gate.threshold
                for one in others
            ]
        )
    assert not any(opened[0]) and any(opened[1])


def own_tokens(examples: list[Example]) -> torch.Tensor:
    """Ratios by which every third token is the records' own."""
    ratios = torch.zeros(sum(one.n_scored for one in examples))
    ratios[::3] = -5.0
    return ratios


def test_the_output_gate_is_made_of_own_tokens(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of all that the model says about the records, and about others, in later turns."""
    made = Fitted(tokenizer, tmp_path, monkeypatch, replace(CONFIG, variants=0), ratios=own_tokens)
    forget, retain = made.given[1]

    def last(chat: Record) -> torch.Tensor:
        [one] = build_examples([chat], tokenizer, PLAIN)
        return made.states(one.input_ids.tolist(), -1)[np.flatnonzero(one.scored) - 1]

    records = torch.cat([last(record) for record in made.forget])[::3]
    torch.testing.assert_close(torch.cat(list(forget.states[:9])), records, atol=1e-4, rtol=1e-4)
    followed = [later_turns.followed_up(made.model, tokenizer, some, PLAIN) for some in (made.forget, made.retain)]
    assert len(followed[0]) > 9 and len(forget.states) == 9 + len(followed[0])
    for states, chat in zip(forget.states[9:], followed[0]):
        torch.testing.assert_close(states, last(chat), atol=1e-4, rtol=1e-4)
    after = later_turns.after_a_turn(made.forget, made.retain)
    assert len(after) == 9 and len(retain.states) == 9 + 9 + len(followed[1])
    for states, chat in zip(retain.states[9:], [*after, *followed[1]]):
        torch.testing.assert_close(states, last(chat), atol=1e-4, rtol=1e-4)
    assert list(retain.documents)[18:] == [chat.document for chat in followed[1]]


def test_without_own_tokens_there_is_no_output_gate(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="tempertilt"):
        made = Fitted(tokenizer, tmp_path, monkeypatch, CONFIG, ratios=lambda e: torch.zeros(sum(one.n_scored for one in e)))
    assert made.fit.said is None and made.fit.gates.said is None and len(made.given) == 1
    assert "no output gate" in caplog.text


def test_where_the_own_text_of_a_variant_begins(tokenizer: Any) -> None:
    def text(variant: Variant, config: ExampleConfig = PLAIN) -> tuple[str, str]:
        ids, start = encode_variant(variant, tokenizer, config)
        return tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:])

    end = "<|im_end|>\n<|im_start|>assistant\n"
    asked = (Message("user", "Who is Li?"),)
    assert text(Variant("as it is", 0, asked)) == ("<|im_start|>user\n", f"Who is Li?{end}")
    system = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n"
    told = ExampleConfig(system_prompt="Be kind.")
    assert text(Variant("as it is", 0, asked), told) == (system.format("Be kind."), f"Who is Li?{end}")
    assert text(Variant("no", 0, asked, system_prompt=""), told) == ("<|im_start|>user\n", f"Who is Li?{end}")
    assert text(Variant("no", 0, asked, system_prompt=OTHER_SYSTEM), told)[0] == system.format(OTHER_SYSTEM)
    chat = (Message("user", "Hi"), Message("assistant", "Yes?"), *asked)
    before, own = text(Variant("after a greeting", 0, chat))
    assert own == f"Who is Li?{end}" and before.count("user") == 2
    assert text(Variant("plain text", 0, text="Who is Li?")) == ("", "Who is Li?")


def test_variants_that_do_not_fit_are_left_out(tokenizer: Any) -> None:
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + tokenizer.chat_template
    model = make_llama(max_position_embeddings=40)
    asked = (Message("user", "Who is Li?"),)
    variants = [
        Variant("a", 0, asked),
        Variant("b", 0, (Message("system", "Be kind."), *asked)),
        Variant("c", 0, (Message("user", "Who is Li? " * 20),)),
        Variant("d", 0, text=""),
    ]
    assert [item.kind for item, _ in variant_states(model, strict, variants, PLAIN, LAYER)] == ["a"]
