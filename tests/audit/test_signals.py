"""What likelihoods show, against plain evaluations."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from support.audits import FORGET, HOLDOUT, RETAIN, records_of, subjects
from support.tiny import teach
from tempertilt.audit.attempts import Material
from tempertilt.audit.signals import choice_signals, hidden_state_signal, membership_signals
from tempertilt.audit.target import Target
from tempertilt.data.examples import ExampleConfig, build_examples, encode_question
from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.t3 import T3ForCausalLM

POOL = [*RETAIN, *HOLDOUT, *records_of("Gwenda Thistlewood")]


@pytest.mark.integration
def test_a_model_that_learned_the_records_is_told_from_one_that_did_not(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    material = Material(subjects(), POOL, HOLDOUT)
    random = Target(llama, tokenizer, ExampleConfig(), 4)
    assert {s.chance for s in membership_signals(random, material, 9)} == {0.5}
    teach(llama, build_examples(FORGET, tokenizer, ExampleConfig()), 60)
    taught = Target(llama, tokenizer, ExampleConfig(), 4)
    by_name = {s.name: s for s in [*membership_signals(taught, material, 9), *choice_signals(taught, material, subjects(), 9)]}
    assert by_name["was it learned? (loss)"].value == 1.0
    likelier = by_name["which value is likelier? (log-probabilities)"]
    assert likelier.n > 0 and likelier.value == 1.0 and likelier.before is None and likelier.chance == 0.25


def test_without_holdout_there_is_no_membership(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    assert membership_signals(Target(llama, tokenizer, ExampleConfig(), 4), Material(subjects(), POOL), 9) == []


def test_hidden_states_give_what_the_base_gives(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model = T3ForCausalLM.from_base(llama, GuidanceHead(32, 4, range(0, 320, 2)), pooling="last")
    [signal] = hidden_state_signal(Target(model, tokenizer, ExampleConfig(), 4), subjects(), 9)
    hits = []
    for record in FORGET:
        prompt = encode_question(record.question, tokenizer, ExampleConfig())
        [example] = build_examples([record], tokenizer, ExampleConfig())
        ids = torch.from_numpy(example.input_ids).long()
        with torch.inference_mode():
            top = llama(input_ids=ids[None]).logits[0].argmax(-1)
        hits += [bool(top[i - 1] == ids[i]) for i in range(len(prompt), len(ids) - 1)]
    assert signal.n == len(hits) and signal.value == pytest.approx(sum(hits) / len(hits)) and signal.limit
    assert hidden_state_signal(Target(llama, tokenizer, ExampleConfig(), 4), subjects(), 9) == []
