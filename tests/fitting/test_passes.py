"""States and log-probabilities at answers against one whole pass for each example."""

from __future__ import annotations

import pytest
import torch
import transformers

from support.architectures import ARCHITECTURES, COMMON, VOCAB, build
from support.direct import direct, random_example
from support.tiny import make_examples, make_llama
from tempertilt.errors import ModelError
from tempertilt.fitting.passes import answer_states, check_output, columns_and_rest, output_logits

NAMES = ("llama", "gemma2", "gpt2", "granite", "cohere", "opt", "qwen2_moe", "falcon_h1")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_columns_and_rest_against_the_whole_vocabulary(name: str, temperature: float) -> None:
    model, one = build(name), random_example()
    expected = direct(model, one)
    states = answer_states(model, [one])
    assert states.tokens.tolist() == one.input_ids[4:].tolist()
    token_ids = torch.tensor([3, 7, 50, 110])
    log_z = output_logits(model, states.states).logsumexp(-1)
    others = [token for token in range(VOCAB) if token not in token_ids.tolist()]
    for known in (None, log_z):
        columns, rest = columns_and_rest(model, states.states, token_ids, temperature, known)
        torch.testing.assert_close(columns.double(), expected[:, token_ids], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(rest.double(), (expected[:, others] / temperature).logsumexp(-1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_logits_of_all_and_of_some_tokens(name: str) -> None:
    model, one = build(name), random_example()
    check_output(model, one)
    with torch.no_grad():
        own = model(input_ids=torch.from_numpy(one.input_ids).long()[None]).logits[0, 3:-1]
    states, some = answer_states(model, [one]).states, torch.tensor([5, 9, 70])
    torch.testing.assert_close(output_logits(model, states), own, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output_logits(model, states, some), own[:, some], atol=1e-5, rtol=1e-5)


def test_an_output_layer_that_is_tied_or_has_a_bias() -> None:
    tied = make_llama(tie_word_embeddings=True, vocab_size=VOCAB)
    biased = transformers.PhiForCausalLM(
        transformers.PhiConfig(**{key: value for key, value in COMMON.items() if key != "num_key_value_heads"})
    ).eval()
    torch.nn.init.normal_(biased.lm_head.bias)
    for model in (tied, biased):
        one, some = random_example(), torch.tensor([5, 9, 70])
        made = output_logits(model, answer_states(model, [one]).states, some)
        expected = direct(model, one)[:, some]
        torch.testing.assert_close((made - made[:, :1]).double(), expected - expected[:, :1], atol=1e-5, rtol=1e-5)


def test_an_unknown_change_of_the_logits_is_refused() -> None:
    model_class, config_class, options = ARCHITECTURES["falcon_h1"]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**options, lm_head_multiplier=0.3)
    with pytest.raises(ModelError, match=r"FalconH1ForCausalLM.*--objective classify"):
        check_output(getattr(transformers, model_class)(config).eval(), random_example())


def test_states_are_in_the_order_of_the_examples() -> None:
    model, examples = make_llama(), make_examples(7)
    states = answer_states(model, examples, batch_tokens=60)
    assert states.tokens.tolist() == [int(token) for one in examples for token in one.input_ids[one.scored]]
    expected = torch.cat([direct(model, one) for one in examples])
    torch.testing.assert_close(output_logits(model, states.states).double().log_softmax(-1), expected, atol=2e-5, rtol=1e-5)
