"""The scoring engine against each answer alone: whole sequence, no cache, no padding, all logits, float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from support.architectures import ARCHITECTURES, build, random_head
from support.tiny import make_llama
from tempertilt.errors import ConfigError, ModelError
from tempertilt.models.scoring import AnswerScore, Question, Scorer, plan_questions
from tempertilt.models.t3 import T3ForCausalLM


def questions(vocab: int, seed: int = 0) -> list[Question]:
    rng = np.random.default_rng(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, vocab, n).tolist())

    sizes = [(7, (5, 1, 9)), (4, (2,)), (7, (3, 3)), (9, (1, 1)), (7, (12,)), (1, (4, 6))]
    out = [Question(ids(prompt), tuple(ids(n) for n in answers), len(answers)) for prompt, answers in sizes]
    stem = out[0].answers[2]  # answers with a common beginning, one a beginning of another, two the same
    kin = (stem, stem[:4], stem[:5] + ids(4), stem[:5] + ids(7), stem, stem[:1], ids(6))
    twin = Question(out[0].prompt[:3] + ids(4), kin[:4], 2)  # a prompt that begins like another
    return [*out, Question(out[0].prompt, kin, 3), twin]


def alone(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].double()
    distribution = logits[len(prompt) - 1 : -1].log_softmax(-1)
    log_probs = distribution[range(len(answer)), list(answer)]
    mean = (distribution.exp() * distribution).sum(-1)
    deviation = ((distribution.exp() * (distribution - mean[:, None]) ** 2).sum(-1)).sqrt()
    hits = distribution.argmax(-1) == torch.tensor(answer)
    return log_probs.numpy(), hits.numpy(), ((log_probs - mean) / deviation).numpy()


def check(model: Any, found: list[list[AnswerScore]], of: list[Question]) -> None:
    for question, scores in zip(of, found, strict=True):
        for n, (answer, score) in enumerate(zip(question.answers, scores, strict=True)):
            log_probs, hits, standardised = alone(model, question.prompt, answer)
            np.testing.assert_allclose(score.log_probs, log_probs, atol=2e-4)
            np.testing.assert_array_equal(score.hits, hits)
            np.testing.assert_allclose(score.standardised, standardised if n < question.n_standardised else [], atol=2e-3)
            assert score.nll == pytest.approx(-log_probs.mean(), abs=2e-4)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.parametrize("unlearned", [False, True])
def test_every_answer_is_scored_as_if_alone(name: str, unlearned: bool) -> None:
    model = build(name)
    if unlearned:
        model = T3ForCausalLM.from_base(model, random_head(model), temperature=1.7, guidance_scale=0.8)
    of = questions(120)
    check(model, Scorer(model, batch_tokens=20).score(of), of)


@pytest.mark.parametrize("batch_tokens", [1, 9, 10_000])
def test_the_budget_changes_nothing(batch_tokens: int) -> None:
    model, of = make_llama(), questions(320)
    check(model, Scorer(model, batch_tokens).score(of), of)


def test_a_hidden_token_is_not_attended_to() -> None:
    model, of = make_llama(), [Question((5, 2, 7, 8), ((9, 2, 11), (4,)))]
    found = Scorer(model, hidden_token_id=2).score(of)[0]
    with torch.no_grad():
        mask = torch.tensor([[1, 0, 1, 1, 1, 0, 1]])
        distribution = model(input_ids=torch.tensor([[5, 2, 7, 8, 9, 2, 11]]), attention_mask=mask).logits[0].log_softmax(-1)
    np.testing.assert_allclose(found[0].log_probs, distribution[[3, 4, 5], [9, 2, 11]].numpy(), atol=1e-4)


def test_batches_hold_prompts_of_one_length_and_every_question_once() -> None:
    of = questions(320)
    for budget in (1, 30, 1000):
        batches = plan_questions(of, budget)
        assert sorted(i for batch in batches for i in batch) == list(range(len(of)))
        for batch in batches:
            assert len({len(of[i].prompt) for i in batch}) == 1
            assert len(batch) == 1 or sum(len(of[i].prompt) + sum(map(len, of[i].answers)) for i in batch) <= budget


class Foreign:
    """An object with the forward of a causal LM and nothing else: no cache in its output, no logits_to_keep."""

    def __init__(self, model: Any) -> None:
        self.model, self.device, self.calls = model, model.device, 0

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        assert attention_mask.shape == input_ids.shape
        self.calls += 1
        return SimpleNamespace(logits=self.model(input_ids=input_ids, attention_mask=attention_mask).logits)


def test_any_object_with_a_forward() -> None:
    model, of = make_llama(), questions(320)
    check(model, Scorer(Foreign(model)).score(of), of)


class Small:
    """A model that runs out of memory above a number of positions."""

    def __init__(self, model: Any, limit: int, error: Exception) -> None:
        self.model, self.device, self.limit, self.error = model, model.device, limit, error

    def __call__(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if input_ids.numel() > self.limit:
            raise self.error
        return self.model(input_ids=input_ids, **kwargs)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] not enough memory")]
)
def test_batches_halve_until_they_fit(error: Exception) -> None:
    model, of = make_llama(), questions(320)
    scorer = Scorer(Small(model, 14, error), batch_tokens=64)
    check(model, scorer.score(of), of)
    assert scorer.batch_tokens < 64


def test_what_never_fits_and_other_errors_are_raised() -> None:
    model, of = make_llama(), questions(320)
    with pytest.raises(ModelError, match="no memory left for one sequence of"):
        Scorer(Small(model, 2, MemoryError("no")), batch_tokens=64).score(of)
    with pytest.raises(RuntimeError, match="other"):
        Scorer(Small(model, 2, RuntimeError("other"))).score(of)
    with pytest.raises(ConfigError, match="batch_tokens is 0"):
        Scorer(model, 0)
    with pytest.raises(ConfigError, match="at least one token"):
        Question((1,), ((),))
