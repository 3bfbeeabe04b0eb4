"""Section 7 on sources whose sequences are all listed, against loops over them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from benchmarks.theory_sweep.sequences import random_distribution

from tempertilt import theory
from tempertilt.errors import ConfigError, DataError
from tempertilt.theory.tokens import TokenDistribution, TokenMixture, guided_distribution, step_divergences, step_tempering_bias

SIZE, LENGTH = 3, 4


@pytest.fixture()
def mixture() -> TokenMixture:
    rng = np.random.default_rng(3)
    return TokenMixture(random_distribution(rng, 1.0, SIZE, LENGTH), random_distribution(rng, 0.2, SIZE, LENGTH), 0.15)


def probability(distribution: TokenDistribution, sequence: tuple[int, ...]) -> float:
    """The product of its steps, with histories numbered in base V."""
    out = 1.0
    for t, token in enumerate(sequence):
        history = sum(earlier * SIZE ** (t - 1 - i) for i, earlier in enumerate(sequence[:t]))
        out *= float(distribution.steps[t][history, token])
    return out


def test_the_chain_rule_holds_and_the_exact_posterior_recovers_the_retain_distribution(mixture: TokenMixture) -> None:
    sequences = list(itertools.product(range(SIZE), repeat=LENGTH))
    rng = np.random.default_rng(0)
    noisy = [odds + rng.normal(0, 1, odds.size) for odds in mixture.log_odds()]
    for odds, t in ((mixture.log_odds(), 1.0), (noisy, 1.0), (noisy, 2.0)):
        guided = guided_distribution(mixture.distribution(), odds, t)
        direct = sum(
            probability(mixture.retain, y) * math.log(probability(mixture.retain, y) / probability(guided, y)) for y in sequences
        )
        assert math.isclose(step_divergences(mixture.retain, guided).sum(), direct, rel_tol=1e-9, abs_tol=1e-12)
    exact = guided_distribution(mixture.distribution(), mixture.log_odds(), 1.0)
    for y in sequences:
        assert math.isclose(probability(exact, y), probability(mixture.retain, y), rel_tol=1e-9)
        p = 0.85 * probability(mixture.retain, y) + 0.15 * probability(mixture.forget, y)
        assert math.isclose(probability(mixture.distribution(), y), p, rel_tol=1e-9)


def test_tempered_tokens_are_not_the_tempered_sequence(mixture: TokenMixture) -> None:
    """Section 12, item 1: they differ even with the exact posterior."""
    t, p = 2.0, mixture.prefix_probs()[-1]
    f = 1 / (1 + np.exp(-mixture.log_odds()[-1]))
    whole = np.sqrt(p) * f / (np.sqrt(p) * f).sum()
    tokens = guided_distribution(mixture.distribution(), mixture.log_odds(), t).prefix_probs()[-1]
    assert 0.005 < np.abs(whole - tokens).sum() / 2 < 0.5


def test_local_bias_by_hand(mixture: TokenMixture) -> None:
    bias = step_tempering_bias(mixture.retain, mixture.distribution(), 2.0)[0]
    r, p = mixture.retain.steps[0][0], mixture.distribution().steps[0][0]
    assert math.isclose(bias, math.log(sum(r * p**-0.5)) + 0.5 * sum(r * np.log(p)), rel_tol=1e-9)


def test_the_rule_takes_log_f_and_not_the_log_odds() -> None:
    logits, f = np.array([0.3, -1.0, 2.0]), np.array([0.9, 0.5, 0.01])
    distribution = np.exp(theory.guided_token_logits(logits, np.log(f), 2.0))
    p = np.exp(logits / 2) * f
    np.testing.assert_allclose(distribution / distribution.sum(), p / p.sum(), rtol=1e-12)


def test_theorem_6_by_hand() -> None:
    assert theory.token_retain_error_bound([0.1, 0.3], 0.2, 1.0, 50, 9.0) == pytest.approx(0.5)
    steps = [d + math.sqrt(d / 2) + 50 ** (2 / 3) * (d / 2) ** (1 / 3) for d in (0.1, 0.3)]
    assert theory.token_retain_error_bound([0.1, 0.3], 0.2, 3.0, 50, [0.2, 0.1]) == pytest.approx(0.3 + sum(steps) / 0.8)
    local = theory.local_forget_error_bound(0.01, 0.2, 0.9, 1.3, 2.0, 0.1)
    assert local == pytest.approx(math.exp(0.1) * 0.01 / 0.8 * math.sqrt(0.8 * 0.9 / 0.2) * math.exp(-0.65))


@pytest.mark.parametrize(("t", "ratio"), [(1.0, 1e4), (1.1, 1.6e3), (1.25, 182), (1.5, 12.6), (2.0, 0.45)])
def test_one_memorised_token(t: float, ratio: float) -> None:
    needed = theory.memorized_token_required_ratio(1 - 1e-4, 0.5, 50_000, t)
    assert math.isclose(needed, ratio, rel_tol=0.03)
    p = np.full(50_000, 1e-4 / 49_999)
    p[0] = 1 - 1e-4
    distribution = p ** (1 / t) * np.where(np.arange(50_000) == 0, 1.0, needed)
    assert math.isclose(distribution[0] / distribution.sum(), 0.5, rel_tol=1e-9)
    assert math.isclose(theory.memorized_token_probability(1 - 1e-4, needed, 50_000, t), 0.5, rel_tol=1e-9)
    assert theory.memorized_token_probability(0.9, 0.0, 10, t) == 1


def test_distributions_are_checked() -> None:
    with pytest.raises(DataError, match="sum to 1"):
        TokenDistribution((np.array([[0.5, 0.6]]),))
    with pytest.raises(ConfigError, match="too many"):
        TokenDistribution.noisy_copy([0] * 8, 50, 0.1)
