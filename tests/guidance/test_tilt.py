"""The guided distribution against direct evaluations in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tempertilt.errors import ConfigError
from tempertilt.guidance.tilt import PartTerms, TiltConfig, composed_logits, guided_logits, target_terms, temper, tilt_weights


def test_the_exact_classifier_recovers_the_retain_distribution() -> None:
    """With Bayes log-odds at the balanced prior and the true forget share, p * exp(w) is p_retain (METHOD, section 2)."""
    rng = np.random.default_rng(0)
    retain, forget = rng.dirichlet(np.ones(30)), rng.dirichlet(np.ones(30))
    for share in (0.02, 0.3, 0.5, 0.9):
        mixture = (1 - share) * retain + share * forget
        log_odds = torch.tensor(np.log(retain / forget))
        weight = tilt_weights(log_odds, share).numpy()
        np.testing.assert_allclose(mixture * np.exp(weight), retain, rtol=1e-5)


def test_equal_priors_give_log_sigmoid_up_to_a_constant() -> None:
    log_odds = torch.linspace(-80, 80, 161)
    expected = torch.log(1 / (1 + torch.exp(-log_odds.double()))).float()
    shift = tilt_weights(log_odds) - expected
    torch.testing.assert_close(shift, torch.full_like(shift, math.log(2)))
    near = tilt_weights(log_odds, 0.5 + 1e-7)
    torch.testing.assert_close(near, tilt_weights(log_odds), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_what_the_classifier_does_not_know_keeps_its_logit(share: float) -> None:
    assert tilt_weights(torch.zeros(3), share).abs().max() < 1e-6


def test_extreme_log_odds_stay_finite() -> None:
    weights = tilt_weights(torch.tensor([-1e4, 1e4]), 0.2)
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
    distribution = torch.log(torch.softmax(logits.double(), -1)) / 1.7 + 0.6 * torch.log(torch.sigmoid(dense.double()))
    distribution = distribution - distribution.logsumexp(-1, keepdim=True)
    for out in (
        guided_logits(logits, log_odds, ids, TiltConfig(1.7, 0.6)),
        guided_logits(logits, dense, None, TiltConfig(1.7, 0.6)),
    ):
        torch.testing.assert_close(out.log_softmax(-1).double(), distribution, atol=1e-5, rtol=1e-5)


def test_half_precision_logits_are_guided_in_float32() -> None:
    logits = torch.tensor([[30.0, 29.75]], dtype=torch.bfloat16)
    out = guided_logits(logits, torch.tensor([[0.01]]), torch.tensor([1]), TiltConfig(2.5))
    assert out.dtype == torch.float32
    expected = 29.75 / 2.5 + math.log(2 / (1 + math.exp(-0.01)))
    assert float(out[0, 1]) == pytest.approx(expected, abs=1e-5)
    assert logits.dtype == torch.bfloat16 and float(logits[0, 1]) == 29.75


@pytest.mark.parametrize("gate", [0.0, 0.3, 1.0])
def test_a_gate_value_weakens_tempering_and_tilt(gate: float) -> None:
    rng = np.random.default_rng(1)
    z, log_odds, ids = rng.normal(size=9), rng.normal(size=3) * 2, [1, 4, 8]
    tilt = TiltConfig(2.0, 0.7, 0.3)
    expected = z / (1 + (2.0 - 1) * gate)
    expected[ids] += 0.7 * gate * -np.log(0.7 + 0.3 * np.exp(-log_odds))
    out = guided_logits(torch.tensor(z), torch.tensor(log_odds), torch.tensor(ids), tilt, torch.tensor(gate))
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    if not gate:
        assert torch.equal(out, torch.tensor(z).float())


def test_target_terms_give_the_guided_log_probability_at_every_scale() -> None:
    rng = np.random.default_rng(2)
    z, log_odds, gate = rng.normal(size=(5, 9)) * 3, rng.normal(size=(5, 3)) * 2, rng.uniform(size=5)
    ids, targets = np.array([1, 4, 8]), np.array([4, 0, 8, 1, 7])
    rows = torch.tensor([1, -1, 2, 0, -1])
    tensors = [torch.tensor(value) for value in (z, log_odds, ids, targets)]
    terms = target_terms(*tensors, rows, TiltConfig(1.5, 0.0, 0.4), torch.tensor(gate))
    for scale in (0.0, 0.8, 3.0):
        guided = z / (1 + 0.5 * gate[:, None])
        guided[:, ids] += scale * gate[:, None] * -np.log(0.6 + 0.4 * np.exp(-log_odds))
        guided -= np.log(np.exp(guided).sum(-1, keepdims=True))
        np.testing.assert_allclose(terms.log_probs(scale).numpy(), guided[np.arange(5), targets], atol=1e-5)
    base = z - np.log(np.exp(z).sum(-1, keepdims=True))
    np.testing.assert_allclose(terms.base.numpy(), base[np.arange(5), targets], atol=1e-5)


def test_no_tempering_leaves_the_logits_themselves() -> None:
    logits = torch.randn(2, 5)
    assert temper(logits, 1.0) is logits


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", "2"),
        ("guidance_scale", -0.1),
        ("guidance_scale", math.inf),
        ("forget_prior", 0),
        ("forget_prior", 1.1),
    ],
)
def test_options_out_of_range_are_refused_with_the_value_seen(name: str, bad: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .*; must be a number") as caught:
        TiltConfig(**{name: bad})  # type: ignore[arg-type]
    assert repr(bad) in str(caught.value)


def test_parts_add_their_weights_and_the_largest_temperature_counts() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(8, 9, generator=generator)
    tilts = (TiltConfig(1.5, 0.7, 0.5), TiltConfig(0.8, 1.0, 0.9), TiltConfig(2.5, 1.3, 1.0))
    columns: tuple[list[int] | None, ...] = ([1, 4, 6], None, [0, 4])
    log_odds = [torch.randn(8, 9 if ids is None else len(ids), generator=generator) for ids in columns]
    gates = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)  # every combination
    parts = [
        PartTerms(odds, None if ids is None else torch.tensor(ids), tilt, gate)
        for odds, ids, tilt, gate in zip(log_odds, columns, tilts, gates.unbind(-1))
    ]
    guided = composed_logits(logits, parts)
    for row, opens in enumerate(gates.bool().tolist()):
        expected = logits[row].double() / max((tilt.temperature for tilt, opened in zip(tilts, opens) if opened), default=1.0)
        for part, ids, opened in zip(parts, columns, opens):
            for column, token in enumerate(range(9) if ids is None else ids):
                q = part.tilt.forget_prior
                weight = -math.log((1 - q) + q * math.exp(-float(part.log_odds[row, column])))
                expected[token] += opened * part.tilt.guidance_scale * weight
        torch.testing.assert_close(guided[row].double(), expected, atol=1e-5, rtol=1e-5)
        if sum(opens) == 1:
            part = parts[opens.index(True)]
            assert torch.equal(guided[row], guided_logits(logits, *part[:3], part.gate)[row])
    assert torch.equal(guided[0], logits[0])
