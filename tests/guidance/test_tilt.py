"""The guided law against direct evaluations in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tempertilt.errors import ConfigError
from tempertilt.guidance.tilt import (
    check_forget_prior,
    check_guidance_scale,
    check_temperature,
    guided_logits,
    log_retain_weight,
)


def test_the_exact_classifier_recovers_the_retain_law() -> None:
    """With Bayes log-odds at the balanced prior and the true forget share, p * exp(w) is p_retain (METHOD, section 2)."""
    rng = np.random.default_rng(0)
    retain, forget = rng.dirichlet(np.ones(30)), rng.dirichlet(np.ones(30))
    for share in (0.02, 0.3, 0.5, 0.9):
        mixture = (1 - share) * retain + share * forget
        log_odds = torch.tensor(np.log(retain / forget))
        weight = log_retain_weight(log_odds, share).numpy()
        np.testing.assert_allclose(mixture * np.exp(weight), retain, rtol=1e-9)


def test_equal_priors_give_log_sigmoid_up_to_a_constant() -> None:
    log_odds = torch.linspace(-90, 90, 181, dtype=torch.float64)
    expected = torch.log(1 / (1 + torch.exp(-log_odds)))
    shift = log_retain_weight(log_odds) - expected
    torch.testing.assert_close(shift, torch.full_like(shift, math.log(2)))
    near = log_retain_weight(log_odds, 0.5 + 1e-9)
    torch.testing.assert_close(near, log_retain_weight(log_odds), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_what_the_classifier_does_not_know_keeps_its_logit(share: float) -> None:
    assert log_retain_weight(torch.zeros(3), share).abs().max() < 1e-6


def test_extreme_log_odds_stay_finite() -> None:
    weights = log_retain_weight(torch.tensor([-1e4, 1e4]), 0.2)
    assert weights[0] == pytest.approx(-1e4 - math.log(0.2), rel=1e-6)
    assert weights[1] == pytest.approx(-math.log(0.8), rel=1e-5)


def test_guided_logits_sparse_and_dense_agree_with_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 11, generator=generator)
    ids = torch.tensor([0, 4, 7, 10])
    log_odds = 3 * torch.randn(2, 3, 4, generator=generator)
    dense = torch.zeros(2, 3, 11)
    for column, token in enumerate(ids.tolist()):
        dense[..., token] = log_odds[..., column]
    law = torch.log(torch.softmax(logits.double(), -1)) / 1.7 + 0.6 * torch.log(torch.sigmoid(dense.double()))
    law = law - law.logsumexp(-1, keepdim=True)
    for out in (
        guided_logits(logits, log_odds, ids, temperature=1.7, guidance_scale=0.6),
        guided_logits(logits, dense, temperature=1.7, guidance_scale=0.6),
    ):
        torch.testing.assert_close(out.log_softmax(-1).double(), law, atol=1e-5, rtol=1e-5)


def test_half_precision_logits_are_guided_in_float32() -> None:
    logits = torch.tensor([[30.0, 29.75]], dtype=torch.bfloat16)
    out = guided_logits(logits, torch.tensor([[0.01]]), torch.tensor([1]), temperature=2.5)
    assert out.dtype == torch.float32
    expected = 29.75 / 2.5 + math.log(2 / (1 + math.exp(-0.01)))
    assert float(out[0, 1]) == pytest.approx(expected, abs=1e-5)
    assert logits.dtype == torch.bfloat16 and float(logits[0, 1]) == 29.75


@pytest.mark.parametrize(
    ("check", "bad"),
    [
        (check_temperature, 0),
        (check_temperature, -1.0),
        (check_temperature, math.nan),
        (check_temperature, "2"),
        (check_guidance_scale, -0.1),
        (check_guidance_scale, math.inf),
        (check_forget_prior, 0),
        (check_forget_prior, 1.0),
    ],
)
def test_options_out_of_range_are_refused_with_the_value_seen(check: object, bad: object) -> None:
    with pytest.raises(ConfigError, match="valid is a number") as caught:
        check(bad)  # type: ignore[operator]
    assert repr(bad) in str(caught.value)
