"""From guided logits to a token and its numbers."""

from __future__ import annotations

import pytest
import torch

from tempertilt.serving.sampling import Sampler, Sampling


def test_draws_follow_the_tempered_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampler = Sampler(Sampling(1, temperature=2.0, seed=0))
    drawn = torch.bincount(torch.tensor([sampler.choose(logits).id for _ in range(4000)]), minlength=4) / 4000
    assert torch.allclose(drawn, (logits / 2).softmax(-1), atol=0.03)


def test_numbers_do_not_depend_on_how_the_request_samples() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    distribution = torch.log_softmax(logits, -1)
    plain = Sampler(Sampling(1, temperature=0, logprobs=3)).choose(logits)
    assert plain.id == int(logits.argmax()) and plain.top[0] == (plain.id, plain.logprob)
    twisted = Sampler(Sampling(9, temperature=0.3, seed=1, top_k=2, logprobs=3, logit_bias={7: 100.0}, presence_penalty=2.0))
    for _ in range(3):
        token = twisted.choose(logits)
        assert token.logprob == pytest.approx(float(distribution[token.id])) and token.top == plain.top


def test_penalties_count_the_tokens_of_the_answer() -> None:
    logits = torch.tensor([1.0, 0.75, 0.0])
    once = Sampler(Sampling(9, temperature=0, presence_penalty=0.5))
    assert [once.choose(logits).id for _ in range(4)] == [0, 1, 0, 0]  # 1.0; then 0.5 < 0.75; then 0.5 > 0.25
    each = Sampler(Sampling(9, temperature=0, frequency_penalty=0.5))
    assert [each.choose(logits).id for _ in range(4)] == [0, 1, 0, 1]


def test_hardly_any_temperature_is_none() -> None:
    logits = torch.tensor([0.0, 1.0, 0.5])
    assert Sampler(Sampling(1, temperature=1e-30)).choose(logits).id == 1
