"""Every bound on a thinned sweep and on random problems; closed forms; that a wrong bound would be noticed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.theory_sweep import SweepGrid, Tally, sweep
from hypothesis import given
from hypothesis import strategies as st

from support.strategies import QUICK, Drawn, problems, temperatures
from tempertilt import theory
from tempertilt.theory import bounds

THIN = SweepGrid(eps=(0.3, 1e-3), deltas=(1e-6, 1e-2), gammas=(0.01, 0.6), temperatures=(1.0, 1.5, 2.0, 10.0), priors=(0.5,))


@pytest.fixture(scope="module")
def tally() -> Tally:
    return sweep(THIN, sources=2, repeats=20)


@pytest.mark.integration
def test_every_bound_holds_on_a_thinned_sweep(tally: Tally) -> None:
    broken = {name: (check.worst, check.worst_case) for name, check in tally.items() if check.violations}
    assert not broken
    assert len(tally) == 48 and all(check.ratios for check in tally.values())
    assert sum(len(check.ratios) for check in tally.values()) > 10_000


@pytest.mark.integration
@pytest.mark.parametrize(
    "name",
    ["Theorem 1(a): retain error", "Theorem 1(b): forget error", "Theorem 2(a): retain error", "Theorem 2(b): forget error",
     "Theorem 2(c): with rho", "Lemma 2(ii): E_p (sqrt f - sqrt f*)^2", "Lemma 3: upper", "Lemma 3: lower"],
)  # fmt: skip
def test_bounds_are_nearly_attained_so_that_a_smaller_one_would_fail(tally: Tally, name: str) -> None:
    assert tally[name].worst > 0.98


@pytest.mark.integration
def test_the_sweep_notices_a_wrong_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bounds.tempered_forget_error_bound
    monkeypatch.setattr(bounds, "tempered_forget_error_bound", lambda *args, **kw: 0.9 * honest(*args, **kw))
    assert sweep(THIN, sources=1, repeats=1)["Theorem 2(b): forget error"].violations > 0


@QUICK
@given(problems(), temperatures)
def test_theorems_1_and_2_hold_on_random_problems(problem: Drawn, t: float) -> None:
    r, f, w, by, gamma = problem
    delta = theory.excess_bce_risk(by, r, f, gamma, w)
    for at in (1.0, t):
        raw = problem.p ** (1 / at) * by
        hat = raw / (raw @ w)
        c = theory.TemperingConstants.from_densities(r, f, gamma, at, w)
        retain, forget = theory.retain_error(r, hat, w), theory.forget_error(hat, r, f, w)
        assert retain <= theory.tempered_retain_error_bound(c, delta) * (1 + 1e-7) + 1e-12
        assert forget <= theory.tempered_forget_error_bound(c, delta) * (1 + 1e-7) + 1e-12
        kappa = theory.retain_log_ratio(by, r, f, gamma, w)
        assert retain <= theory.tempered_retain_error_bound(c, delta, kappa) * (1 + 1e-7) + 1e-12
        assert forget <= theory.tempered_forget_error_bound(c, delta, kappa) * (1 + 1e-7) + 1e-12
        if at == 1:
            assert retain <= theory.plain_retain_error_bound(delta, gamma) * (1 + 1e-7) + 1e-12
            assert forget <= theory.plain_forget_error_bound(delta, gamma, c.forget_sup, c.overlap) * (1 + 1e-7) + 1e-12


@QUICK
@given(problems(disjoint=True), temperatures)
def test_theorem_2c_holds_on_disjoint_supports(problem: Drawn, t: float) -> None:
    r, f, w, by, gamma = problem
    delta = theory.excess_bce_risk(by, r, f, gamma, w)
    raw = problem.p ** (1 / t) * by
    c = theory.TemperingConstants.from_densities(r, f, gamma, t, w)
    assert c.overlap == 0 and c.shared_floor
    kappa = float(w * r @ -np.log(by))
    bound = theory.sup_norm_forget_error_bound(delta, gamma, c.forget_sup, c.log_p_bar, 0.0, t, kappa)
    assert theory.forget_error(raw / (raw @ w), r, f, w) <= bound * (1 + 1e-9)


@QUICK
@given(problems(), st.floats(0, 0.2))
def test_at_t_1_form_b_is_theorem_1a(problem: Drawn, delta: float) -> None:
    r, f, w, _, gamma = problem
    c = theory.TemperingConstants.from_densities(r, f, gamma, 1.0, w)
    bound = theory.tempered_retain_error_bound(c, delta, kappa=1e9)
    if math.sqrt(delta / 2) < 1 - gamma:
        assert math.isclose(bound, delta / (1 - gamma), rel_tol=1e-9, abs_tol=1e-12)


@QUICK
@given(problems(), temperatures, st.floats(1e-6, 0.5))
def test_the_normaliser_bound_is_the_least_over_theta(problem: Drawn, t: float, delta: float) -> None:
    """Lemma 5(i), each theta by hand; its closed forms are the ends of the range."""
    r, f, w, _, gamma = problem
    c = theory.TemperingConstants.from_densities(r, f, gamma, t, w)

    def direct(theta: float) -> float:
        power = (1 / t - theta) / (1 - theta)
        return (delta / 2) ** theta * float(w @ problem.p**power) ** (1 - theta)

    bound = theory.normalizer_deviation_bound(c, delta)
    assert math.isclose(bound, min(direct(theta) for theta, _ in c.power_integrals), rel_tol=1e-9)
    if t <= 2:
        assert bound <= math.sqrt(delta / 2) * math.sqrt(w @ problem.p ** (2 / t - 1)) * (1 + 1e-9)
    assert bound <= w.sum() ** (1 - 1 / t) * (delta / 2) ** min(0.5, 1 / t) * (1 + 1e-9)


@pytest.mark.parametrize("t", [1.0, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("eps", [0.1, 1e-4, 1e-8])
def test_spike_closed_forms_to_1e_10(eps: float, t: float) -> None:
    gamma, delta = 0.2, eps**0.5
    a = 1 - math.exp(-delta / gamma)
    r, f, by, w = theory.spike_example(eps, gamma, delta)
    p = np.array([gamma / eps, 1 - gamma])
    raw = p ** (1 / t) * np.array([a, 1.0])
    hat = raw / (raw @ w)
    assert math.isclose(theory.excess_bce_risk(by, r, f, gamma, w), delta, rel_tol=1e-10)
    assert math.isclose(theory.spike_forget_error(eps, gamma, delta, t), hat[0], rel_tol=1e-10)
    assert math.isclose(theory.spike_retain_error(eps, gamma, delta, t), -math.log(hat[1]), rel_tol=1e-10, abs_tol=1e-10)
    low, high = theory.spike_forget_error_bounds(eps, gamma, delta, t)
    assert low <= hat[0] <= high


@pytest.mark.parametrize("s", [0.25, 0.5, 0.75])
def test_the_threshold_is_at_one_over_s(s: float) -> None:
    def forget(eps: float, t: float) -> float:
        return theory.spike_forget_error(eps, 0.1, eps**s, t)

    assert forget(1e-30, 0.9 / s) > 3 * forget(1e-10, 0.9 / s)
    assert forget(1e-30, 1.1 / s) < 0.7 * forget(1e-10, 1.1 / s)
    assert math.isclose(forget(1e-30, 1 / s), forget(1e-28, 1 / s), rel_tol=1e-3)
    assert theory.spike_retain_error(1e-30, 0.1, 1e-30**s, 1.0) < 1e-6


def test_theorem_4_by_hand() -> None:
    assert theory.minimax_forget_error_lower_bound(80.0, 10) == 1.0
    assert theory.minimax_forget_error_lower_bound(64.0, 10, 90, 0.5) == pytest.approx(1 / 90)


def test_theorem_5_by_hand() -> None:
    n, m, gamma, eta = 400, 100, 0.2, 0.05
    s = math.sqrt(0.8**2 / n + 0.2**2 / m)
    tail = math.sqrt(math.log(2 / eta) / 2)
    assert theory.sampling_scale(n, m, gamma) == pytest.approx(s)
    finite = theory.excess_risk_bound_finite_class(n, m, gamma, 4.0, 30, eta, 0.1)
    assert finite == pytest.approx(0.1 + 8 * s * math.sqrt(math.log(60 / eta) / 2))
    linear = theory.excess_risk_bound_linear(n, m, gamma, 2.0, 3.0, eta)
    assert linear == pytest.approx(12 * (0.8 / 20 + 0.2 / 10) + 12 * s * tail)
    e = 4 * s
    smooth = theory.excess_risk_bound_lipschitz(n, m, gamma, 4.0, 7, 2.0, 3.0, eta)
    assert smooth == pytest.approx(2 * e + 4 * s * (math.sqrt((7 * math.log(1 + 12 / e) + math.log(2 / eta)) / 2) + tail))
    loose = theory.excess_risk_bound_pseudodim(n, m, gamma, 4.0, 9, eta)
    assert loose == pytest.approx(2 * 56 * 4 * 3 * (0.8 / 20 + 0.2 / 10) + 8 * s * tail)
    fast = theory.excess_risk_bound_fast(n, m, gamma, 4.0, 30, eta)
    assert fast == pytest.approx((2 + math.log(1 + math.exp(4))) * 2 * math.log(30 / eta) / 500)
    skewed = theory.excess_risk_bound_fast(n, m, 0.4, 4.0, 30, eta)
    assert skewed == pytest.approx(2 * fast)  # gamma / pi = 0.4 / 0.2


def test_the_held_out_bracket_by_hand() -> None:
    retain, forget, gamma, eta = np.array([2.0, 0.5]), np.array([-1.0, -3.0, 1.0]), 0.3, 0.1
    mean = 0.7 * np.log1p(np.exp(-retain)).mean() + 0.3 * np.log1p(np.exp(forget)).mean()
    s = math.sqrt(0.49 / 2 + 0.09 / 3)
    assert theory.held_out_risk(retain, forget, gamma) == pytest.approx(mean)
    upper, lower = theory.held_out_excess_risk_bound(retain, forget, gamma, 5.0, eta)
    assert upper == pytest.approx(mean + 5 * s * math.sqrt(math.log(10) / 2)) and lower == 0
    always = theory.held_out_excess_risk_bound(np.full(1000, 5.0), np.full(1000, 5.0), 0.5, 5.0, eta)
    kept = 1 / (1 + math.exp(-5)) - theory.sampling_scale(1000, 1000, 0.5) * math.sqrt(math.log(20) / 2)
    assert always.lower == pytest.approx(0.5 * math.log(0.5 / kept) + 0.5 * math.log(0.5 / (1 - kept)))
