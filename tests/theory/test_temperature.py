"""The choice of T against brute force, the critical temperature against the bound, and the diagnosis."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from support.strategies import QUICK
from tempertilt import theory
from tempertilt.errors import ConfigError

deltas, gaps, gammas = st.floats(1e-8, 0.2), st.floats(0.1, 20.0), st.floats(0.02, 0.9)


def brute(cost, top: float) -> float:  # type: ignore[no-untyped-def]
    """The best beta in [0, top] on a grid, refined twice."""
    low, high = 0.0, top
    for _ in range(4):
        betas = np.linspace(low, high, 2001)
        at = betas[int(np.argmin(cost(betas)))]
        step = (high - low) / 2000
        low, high = max(0.0, at - 2 * step), min(top, at + 2 * step)
    return float(at)


@QUICK
@given(deltas, gammas, gaps, st.floats(0.1, 5.0), st.floats(0.1, 10.0))
def test_lambert_equals_brute_force(delta: float, gamma: float, gap: float, spread: float, penalty: float) -> None:
    log_p = spread * np.array([-1.0, 1.0])
    gain = delta / (gamma * (1 - gamma)) * math.exp(gap)
    t = theory.optimal_temperature(delta, gamma, gap, log_p, penalty, t_max=10.0, method="lambert")

    def cost(betas: np.ndarray) -> np.ndarray:
        return gain * np.exp(-betas * gap) + penalty * betas**2 * spread**2 / 2

    best = brute(cost, 0.9)
    assert abs((1 - 1 / t) - best) < 1e-5 or math.isclose(cost(np.array([1 - 1 / t]))[0], cost(np.array([best]))[0], rel_tol=1e-9)


@QUICK
@given(deltas, gammas, gaps, st.integers(0, 1000), st.floats(0.1, 10.0))
def test_cgf_equals_brute_force(delta: float, gamma: float, gap: float, seed: int, penalty: float) -> None:
    log_p = np.random.default_rng(seed).normal(-3, 1.5, 40)
    t = theory.optimal_temperature(delta, gamma, gap, log_p, penalty, t_max=10.0)

    def cost(betas: np.ndarray) -> np.ndarray:
        gain = delta / (gamma * (1 - gamma)) * np.exp(gap * (1 - betas))
        return gain + penalty * (np.log(np.exp(-betas[:, None] * log_p).mean(1)) + betas * log_p.mean())

    chosen, best = (float(cost(np.array([beta]))[0]) for beta in (1 - 1 / t, brute(cost, 0.9)))
    assert math.isclose(chosen, best, rel_tol=1e-8, abs_tol=1e-12)
    assert math.isclose(theory.temperature_objective(t, delta, gamma, gap, log_p, penalty), chosen, rel_tol=1e-9, abs_tol=1e-12)


@QUICK
@given(deltas, gammas, st.floats(-5, 20), st.floats(1e-3, 100.0))
def test_critical_temperature_is_the_first_that_meets_the_tolerance(delta: float, gamma: float, gap: float, tau: float) -> None:
    def first_term(t: float) -> float:
        return delta / (gamma * (1 - gamma)) * math.exp(gap / t)

    t = theory.critical_temperature(delta, gamma, gap, tau)
    if math.isinf(t):
        assert first_term(1e12) >= tau * (1 - 1e-9)
        return
    assume(t < 1e6)
    assert first_term(t) <= tau * (1 + 1e-9)
    if t > 1:
        assert first_term(t * 0.999) > tau * (1 - 1e-9)


def test_choices_at_the_ends() -> None:
    log_p = np.array([-3.0, -1.0])
    assert theory.optimal_temperature(0.1, 0.1, -1.0, log_p) == 1
    assert theory.optimal_temperature(0.0, 0.1, 5.0, log_p) == 1
    for method in ("cgf", "lambert"):
        assert theory.optimal_temperature(0.1, 0.1, 5.0, np.full(4, -2.0), method=method) == 3
        assert theory.optimal_temperature(1e-3, 0.1, 400.0, log_p, method=method) == 3  # no overflow
    free = theory.optimal_temperature(0.05, 0.1, 6.0, np.random.default_rng(0).normal(0, 2, 200), t_max=6.0)
    guarded = theory.optimal_temperature(0.05, 0.1, 6.0, np.random.default_rng(0).normal(0, 2, 200), t_max=6.0, min_ess=0.5)
    assert 1 < guarded < free


def test_extremes_are_infinite_and_nonsense_is_refused() -> None:
    assert theory.temperature_objective(1.0, 0.1, 0.1, 900.0, [-1.0]) == math.inf
    c = theory.TemperingConstants.from_densities([0.5, 0.5, 0.0], [0.0, 0.1, 0.9], 0.2, 2.0)
    assert theory.tempered_forget_error_bound(c, 50.0, kappa=1e4) == math.inf
    assert theory.sup_norm_forget_error_bound(1.0, 0.2, 5.0, 0.0, 0.0, 2.0, kappa=1e4) == math.inf
    for call in (
        lambda: theory.critical_temperature(0.1, 0.1, math.nan, 1.0),
        lambda: theory.optimal_temperature(0.1, 0.1, math.inf, [-1.0]),
        lambda: theory.temperature_objective(1.0, 0.1, 0.1, math.nan, [-1.0]),
    ):
        with pytest.raises(ConfigError, match="gap is"):
            call()


def test_lambert_goes_to_the_threshold_of_the_spike() -> None:
    for s in (0.4, 0.6):
        t = theory.optimal_temperature(math.exp(-s * 400), 0.1, 400.0, [-1.0, 1.0], t_max=50.0, method="lambert")
        assert math.isclose(t, 1 / s, rel_tol=0.06)


def sides(gap: float, logit: float, n: int = 400) -> tuple[theory.Sides, theory.Sides]:
    rng = np.random.default_rng(0)
    likelihoods = theory.Sides(rng.normal(-40, 1.5, n), -40 + gap - np.abs(rng.normal(0, 0.1, n)))
    return likelihoods, theory.Sides(rng.normal(logit, 0.2, n), rng.normal(-logit, 0.2, n))


def test_a_diagnosis_by_hand() -> None:
    likelihoods, logits = sides(4.0, 6.0)
    d = theory.diagnose(likelihoods, logits, gamma=0.2, temperature=2.5)
    shifted = [np.asarray(of) + math.log(0.8 / 0.2) for of in logits]
    risk = 0.8 * np.log1p(np.exp(-shifted[0])).mean() + 0.2 * np.log1p(np.exp(shifted[1])).mean()
    assert d.delta_estimate == pytest.approx(risk) and d.delta_lower <= risk <= d.delta_upper
    assert d.concentration_gap == pytest.approx(max(likelihoods.forget) - np.mean(likelihoods.retain))
    assert d.kappa == pytest.approx(np.log1p(np.exp(-shifted[0])).mean())
    assert d.critical_temperature == theory.critical_temperature(risk, 0.2, d.concentration_gap, 1.0)
    chosen = theory.optimal_temperature(risk, 0.2, d.concentration_gap, likelihoods.retain)
    assert d.recommended_temperature == chosen and 1 < chosen < 3
    x = np.asarray(likelihoods.retain)
    assert d.retain_bias_in_use == pytest.approx(np.log(np.exp(-0.6 * (x - x.mean())).mean()))
    assert "T = 2.5 in use" in "\n".join(d.lines())


@pytest.mark.integration
def test_a_recommendation_is_covered_only_with_a_good_head_and_enough_held_out_data() -> None:
    likelihoods, logits = sides(4.0, 6.0, n=40_000)
    good = theory.diagnose(likelihoods, logits, gamma=0.2)
    assert good.covered and good.sentence.endswith("the bounds cover it.")
    few = theory.diagnose(likelihoods, theory.Sides(logits.retain[:20], logits.forget[:20]), gamma=0.2)
    assert not few.covered and "more are needed" in few.sentence
    useless = theory.diagnose(likelihoods, theory.Sides([-1.0] * 50, [1.0] * 50))
    assert not useless.covered and "always the same" in useless.sentence and "no temperature" in useless.sentence
    assert math.isinf(useless.critical_temperature) and "critical T none" in useless.lines()
    capped = theory.diagnose(*sides(30.0, 3.0, n=40_000))
    assert "largest T considered" in capped.sentence and capped.recommended_temperature == 3
    tokens = theory.diagnose(likelihoods, logits, gamma=0.2, token_rule=True)
    assert not tokens.covered and "each token" in tokens.sentence


def test_the_diagnosis_of_an_adapter_is_never_covered_and_says_why() -> None:
    likelihoods, logits = sides(4.0, 6.0)
    plain = theory.diagnose_adapter(likelihoods, logits, temperature=2.5, forget_prior=0.2)
    same = theory.diagnose(likelihoods, logits, gamma=0.2, temperature=2.5, token_rule=True)
    assert plain == same and "each token" in plain.sentence
    scaled = theory.diagnose_adapter(likelihoods, logits, temperature=0.8, guidance_scale=0.3)
    assert "scaled by 0.3" in scaled.sentence and scaled.retain_bias_in_use is None
    useless = theory.diagnose_adapter(likelihoods, theory.Sides([-1.0], [1.0]), temperature=2.5)
    report = json.loads(json.dumps(useless.report(), allow_nan=False))
    assert report["critical_temperature"] is None and report["covered"] is False and report["sentence"] == useless.sentence


def test_without_a_spike_there_is_nothing_to_flatten() -> None:
    likelihoods, logits = sides(-2.0, 6.0)
    d = theory.diagnose(likelihoods, logits)
    assert d.recommended_temperature == 1 and d.retain_bias == 0 and "no spike" in " ".join(d.remarks)


def test_clipping_and_thin_evidence_are_said() -> None:
    rng = np.random.default_rng(1)
    heavy = theory.Sides(-40 - 5 * rng.exponential(1, 300), np.full(300, -20.0))
    d = theory.diagnose(heavy, theory.Sides([30.0] * 300, [-30.0] * 299 + [2.0]))
    assert any("599 log-odds" in remark for remark in d.remarks) and any("understated" in remark for remark in d.remarks)
