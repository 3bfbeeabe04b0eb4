"""Definitions, the classifier's lemmas and the estimator, each against a direct evaluation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import dblquad, quad

from support.strategies import QUICK, Drawn, problems, shares, temperatures
from tempertilt import theory
from tempertilt.errors import ConfigError, DataError


def kl(p: np.ndarray, q: np.ndarray, w: np.ndarray) -> float:
    return sum(wi * a * math.log(a / b) for wi, a, b in zip(w, p, q) if a > 0)


@QUICK
@given(problems(), shares)
def test_prior_correction_is_exact(problem: Drawn, prior: float) -> None:
    r, f, w, _, gamma = problem
    trained = theory.retain_posterior(r, f, prior, w)
    odds = np.log(trained) - np.log(theory.retain_posterior(f, r, 1 - prior, w))
    corrected = theory.correct_prior_shift(odds, gamma, prior)
    direct = np.log((1 - gamma) * r) - np.log(gamma * f)
    np.testing.assert_allclose(corrected, direct, rtol=0, atol=1e-9)


@QUICK
@given(problems())
def test_the_exact_posterior_at_t_1_gives_the_retain_distribution(problem: Drawn) -> None:
    r, f, w, _, gamma = problem
    best = theory.retain_posterior(r, f, gamma, w)
    guided = theory.guided_log_density(np.log(problem.p), np.log(best), 1.0, np.log(w))
    np.testing.assert_allclose(np.exp(guided.log_density), r, rtol=1e-9)
    assert math.isclose(math.exp(guided.log_normalizer), 1 - gamma, rel_tol=1e-12)


@QUICK
@given(problems())
def test_excess_risk_is_a_difference_of_risks_and_splits_as_lemma_1_says(problem: Drawn) -> None:
    r, f, w, by, gamma = problem

    def risk(of: np.ndarray) -> float:
        return sum(wi * (-(1 - gamma) * a * math.log(x) - gamma * b * math.log(1 - x)) for wi, a, b, x in zip(w, r, f, of))

    best = (1 - gamma) * r / problem.p
    delta = theory.excess_bce_risk(by, r, f, gamma, w)
    assert math.isclose(delta, risk(by) - risk(best), rel_tol=1e-7, abs_tol=1e-9)
    parts = theory.excess_risk_parts(by, r, f, gamma, w)
    hat, hat_forget, z = problem.p * by, problem.p * (1 - by), w @ (problem.p * by)
    assert math.isclose(parts.retain, (1 - gamma) * kl(r, hat / z, w), rel_tol=1e-7, abs_tol=1e-10)
    assert math.isclose(parts.forget, gamma * kl(f, hat_forget / (1 - z), w), rel_tol=1e-7, abs_tol=1e-10)
    assert math.isclose(parts.total, delta, rel_tol=1e-7, abs_tol=1e-10)


@QUICK
@given(problems(), temperatures)
def test_errors_are_their_definitions(problem: Drawn, t: float) -> None:
    r, f, w, by, _ = problem
    raw = problem.p ** (1 / t) * by
    hat = raw / (raw @ w)
    guided = theory.guided_log_density(np.log(problem.p), np.log(by), t, np.log(w))
    np.testing.assert_allclose(np.exp(guided.log_density), hat, rtol=1e-9)
    assert math.isclose(theory.retain_error(r, hat, w), kl(r, hat, w), rel_tol=1e-9, abs_tol=1e-12)
    assert math.isclose(theory.forget_error(hat, r, f, w), sum(w * f * abs(hat - r)), rel_tol=1e-12)


@QUICK
@given(problems(), st.lists(temperatures, min_size=3, max_size=3))
def test_tempering_bias_is_what_a_perfect_classifier_gets_and_is_monotone_and_convex(problem: Drawn, ts: list[float]) -> None:
    r, f, w, _, gamma = problem
    betas = sorted(1 - 1 / t for t in ts)
    biases = []
    for beta in betas:
        t = 1 / (1 - beta)
        tempered = r * problem.p**-beta
        tempered /= tempered @ w
        bias = theory.retain_tempering_bias(np.log(problem.p), t, w * r)
        assert math.isclose(bias, kl(r, tempered, w), rel_tol=1e-7, abs_tol=1e-9)
        forget = theory.forget_tempering_bias(r, f, gamma, t, w)
        assert math.isclose(forget, sum(w * f * abs(tempered - r)), rel_tol=1e-7, abs_tol=1e-9)
        biases.append(bias)
    assert biases[0] <= biases[1] + 1e-12 and biases[1] <= biases[2] + 1e-12
    if betas[2] > betas[0]:
        share = (betas[1] - betas[0]) / (betas[2] - betas[0])
        assert biases[1] <= (1 - share) * biases[0] + share * biases[2] + 1e-9


def test_no_bias_where_log_p_is_constant_and_none_at_t_1() -> None:
    assert theory.retain_tempering_bias(np.full(5, -3.0), 4.0) == 0
    assert theory.retain_tempering_bias([-1.0, -9.0], 1.0) == 0
    assert theory.retain_tempering_bias([-1.0, -9.0], 2.0) > 0.5


def test_constants_are_their_definitions() -> None:
    r, f, w, gamma, t = np.array([0.5, 0.2, 0.0]), np.array([0.0, 1.0, 4.0]), np.array([1.6, 1.0, 0.0]), 0.3, 2.5
    r, f, w = np.array([0.5, 0.2, 0.0]), np.array([0.0, 0.2, 4.0]), np.array([1.6, 1.0, 0.2])
    p = (1 - gamma) * r + gamma * f
    c = theory.TemperingConstants.from_densities(r, f, gamma, t, w)
    best = (1 - gamma) * r / p
    assert c.forget_sup == 4 and math.isclose(c.overlap, 0.04)
    assert math.isclose(c.tempered_sup, max(0.2 * p[1] ** (1 / t - 1), 4 * p[2] ** (1 / t - 1)))
    assert math.isclose(c.normalizer, sum(w * p ** (1 / t) * best))
    assert math.isclose(c.power_mass, sum(w * p ** (1 / t)))
    assert math.isclose(c.square_mass, sum(w * p ** (2 / t - 1)))
    assert math.isclose(c.tempered_overlap, sum(w * f * p ** (1 / t) * best))
    assert math.isclose(c.forget_power, sum(w * f ** (1 + 1 / t)))
    mean = 0.8 * math.log(p[0]) + 0.2 * math.log(p[1])
    assert math.isclose(c.log_p_bar, mean)
    assert math.isclose(c.log_p_variance, 0.8 * (math.log(p[0]) - mean) ** 2 + 0.2 * (math.log(p[1]) - mean) ** 2)
    assert math.isclose(c.log_p_range, math.log(p[0] / p[1]))
    assert math.isclose(c.concentration_gap, math.log(gamma * 4) - mean)
    assert not c.shared_floor


@QUICK
@given(st.floats(0, 1), st.floats(0, 1))
def test_binary_kl(p: float, q: float) -> None:
    def term(a: float, b: float) -> float:
        return 0.0 if a == 0 else math.inf if b == 0 else a * math.log(a / b)

    direct = term(p, q) + term(1 - p, 1 - q)
    value = float(theory.binary_kl(p, q))
    assert value == direct if math.isinf(direct) else math.isclose(value, direct, rel_tol=1e-9, abs_tol=1e-12)


def test_distributions_integrate_and_sample() -> None:
    rng = np.random.default_rng(0)
    mixture = theory.GaussianMixture(np.array([[-1.0], [2.0]]), np.array([0.5, 1.0]), np.array([0.3, 0.7]))
    total = quad(lambda x: math.exp(mixture.log_density([x])), -10, 10)[0]
    assert math.isclose(total, 1, rel_tol=1e-8)
    nodes, weights = mixture.quadrature(6)
    square = quad(lambda x: x**2 * math.exp(mixture.log_density([x])), -12, 12)[0]
    assert math.isclose(float(weights @ nodes[:, 0] ** 2), square, rel_tol=1e-9)
    grid = mixture.on_grid(np.linspace(-6, 8, 57))
    inside = quad(lambda x: math.exp(mixture.log_density([x])), 0.0, 0.25)[0]
    assert math.isclose(float(grid.density[24] * 0.25), inside, rel_tol=1e-6) and math.isclose(grid.edges[24], 0)
    samples = grid.sample(20_000, rng)
    assert abs(samples.mean() - float(grid.weights * grid.density @ grid.centers)) < 4 * samples.std() / math.sqrt(20_000)
    assert abs(mixture.sample(20_000, rng).mean() - (0.3 * -1 + 0.7 * 2)) < 0.05
    plane = theory.GaussianMixture(np.array([[0.0, 1.0]]), np.array([0.7]), np.array([1.0]))
    assert math.isclose(dblquad(lambda y, x: math.exp(plane.log_density([x, y])), -4, 4, -3, 5)[0], 1, rel_tol=1e-6)
    nodes, weights = plane.quadrature(4)
    assert math.isclose(float(weights @ (nodes[:, 0] ** 2 * nodes[:, 1])), 0.49, rel_tol=1e-9)
    finite = theory.FiniteDistribution(np.array([0.2, 0.8]))
    assert abs(finite.sample(10_000, rng).mean() - 0.8) < 0.02
    uniform = theory.GridDistribution.uniform([0, 1, 3, 4], 1, 4)
    np.testing.assert_allclose(uniform.density, [0, 1 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.mixture_density([0.5, 0.5], [1.0, 0.0], 1.0), "gamma is 1.0"),
        (lambda: theory.prior_logit_shift(0.5, 0.0), "train_forget_prior is 0.0"),
        (lambda: theory.retain_tempering_bias([0.0], 0.5), "temperature is 0.5"),
        (lambda: theory.plain_retain_error_bound(-1.0, 0.5), "delta is -1.0"),
        (lambda: theory.held_out_excess_risk_bound([1.0], [1.0], 0.5, 2.0, 1.0), "eta is 1.0"),
        (lambda: theory.optimal_temperature(0.1, 0.5, 1.0, [0.0], method="guess"), "cgf, lambert"),
        (lambda: theory.minimax_forget_error_lower_bound(1.0, 10, 10), "go together"),
    ],
)
def test_bad_options_are_config_errors(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message) as caught:
        call()
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.mixture_density([0.5, 0.6], [1.0, 0.0], 0.5), "integrates to 1.1"),
        (lambda: theory.mixture_density([1.5, -0.5], [1.0, 0.0], 0.5), "-0.5"),
        (lambda: theory.mixture_density([0.5, 0.5], [1.0], 0.5), "shape"),
        (lambda: theory.excess_bce_risk([0.5, 1.5], [0.5, 0.5], [1.0, 0.0], 0.5), r"\[0, 1\]"),
        (lambda: theory.binary_kl(math.nan, 0.5), "not finite"),
        (lambda: theory.retain_tempering_bias([], 2.0), "empty"),
        (lambda: theory.concentration_gap([math.inf], [0.0]), "not finite"),
        (lambda: theory.guided_log_density([0.0], [-math.inf]), "cannot be normalised"),
        (lambda: theory.guided_log_density([0.0], [0.1]), "<= 0"),
        (lambda: theory.held_out_excess_risk_bound([3.0], [1.0], 0.5, 2.0, 0.1), "logit_bound"),
        (lambda: theory.token_retain_error_bound([-0.1], 0.5, 1.0, 10), "-0.1"),
    ],
)
def test_bad_arrays_are_data_errors(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=message) as caught:
        call()
    assert isinstance(caught.value, ValueError)


def test_what_is_excluded_is_infinite_not_an_error() -> None:
    assert theory.retain_error([0.5, 0.5], [1.0, 0.0]) == math.inf
    assert theory.excess_bce_risk([0.0, 1.0], [0.5, 0.5], [0.0, 1.0], 0.5) == math.inf
