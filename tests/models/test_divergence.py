"""Two models side by side against each sequence alone: no padding, every token's distribution, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from support.architectures import ARCHITECTURES, build, random_head
from support.tiny import make_llama
from tempertilt.errors import ModelError
from tempertilt.models.divergence import divergences
from tempertilt.models.scoring import Question
from tempertilt.models.t3 import T3ForCausalLM


def questions() -> list[Question]:
    rng = np.random.default_rng(0)
    sizes = [(7, (5, 2)), (4, (2,)), (9, (1, 3)), (1, (6,)), (7, (12,))]
    return [
        Question(tuple(rng.integers(3, 120, prompt).tolist()), tuple(tuple(rng.integers(3, 120, n).tolist()) for n in answers))
        for prompt, answers in sizes
    ]


def alone(model: Any, question: Question) -> torch.Tensor:
    """Log-probabilities `(n, V)` before each token of the first answer."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([question.prompt + question.answers[0]]), use_cache=False).logits[0].double()
    return logits[len(question.prompt) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.parametrize("batch_tokens", [1, 30, 1000])
def test_distances_are_those_of_each_answer_alone(name: str, batch_tokens: int) -> None:
    reference = build(name)
    model = T3ForCausalLM.from_base(build(name), random_head(reference), temperature=1.7, guidance_scale=0.8)
    for question, found in zip(questions(), divergences(model, reference, questions(), batch_tokens), strict=True):
        ours, theirs = alone(model, question), alone(reference, question)
        kl = (theirs.exp() * (theirs - ours)).sum(-1)
        assert found.kl == pytest.approx(kl.numpy(), abs=2e-4) and found.kl.max() > 1e-3
        np.testing.assert_array_equal(found.same_top, (ours.argmax(-1) == theirs.argmax(-1)).numpy())
    for found in divergences(reference, reference, questions(), batch_tokens):
        assert found.kl.max() == 0 and found.same_top.all()


def test_it_is_kl_from_the_reference_to_the_model() -> None:
    one, other = make_llama(0), make_llama(1)
    there, back = (divergences(*pair, questions(), 100)[0].kl.sum() for pair in ((one, other), (other, one)))
    assert abs(there - back) > 1e-4
    theirs, ours = alone(other, questions()[0]), alone(one, questions()[0])
    assert there == pytest.approx(float((theirs.exp() * (theirs - ours)).sum()), rel=1e-3)


def test_models_of_other_vocabularies_are_refused() -> None:
    with pytest.raises(ModelError, match=r"a vocabulary of 400 tokens, the model one of 320; must be the same"):
        divergences(make_llama(), make_llama(vocab_size=400), questions(), 100)
