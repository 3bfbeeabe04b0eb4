"""Lemmas 1 to 6, Theorems 1 and 2, Theorem 3', Proposition 4 and the critical temperature on densities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from benchmarks.theory_sweep.problems import Case, Classifier, SweepGrid, bayes, cases, risk
from benchmarks.theory_sweep.tally import Tally
from scipy.special import expit

from tempertilt.theory import bounds, classifier, temperature
from tempertilt.theory.checks import log
from tempertilt.theory.constants import TemperingConstants
from tempertilt.theory.guidance import forget_error, guided_log_density, retain_error


def sweep_densities(tally: Tally, grid: SweepGrid) -> None:
    """All of this file's checks on the whole grid."""
    seen: set[tuple[str, float, float]] = set()
    for case in cases(grid):
        check_classifier(tally, case, grid.priors)
        first = (key := (case.label["family"], case.label["eps"], case.gamma)) not in seen
        seen.add(key)
        for t in grid.temperatures:
            constants = TemperingConstants.from_densities(*case.problem[:2], case.gamma, t, case.problem.weights)
            check_tempered(tally, case, constants)
            if first:
                bound = constants.beta**2 * constants.log_p_range**2 / 8
                tally.at_most("Lemma 6: B_r <= beta^2 r^2 / 8", constants.retain_bias, bound, **case.label, T=t)
        if first:
            check_uncorrected_prior(tally, case, grid.priors)
            check_bounded_logits(tally, case, grid.temperatures)


def check_classifier(tally: Tally, case: Case, priors: Sequence[float]) -> None:
    """Lemmas 1 to 3 and 5(ii), Theorem 1."""
    (r, f, w), gamma, by, delta, label = case
    p, best = (1 - gamma) * r + gamma * f, bayes(case.problem, gamma)
    parts = classifier.excess_risk_parts(by.retain, r, f, gamma, w, forget_prob=by.forget)
    tally.at_most("Lemma 1: |sum of parts / delta - 1| <= 1e-8", abs(parts.total / delta - 1), 1e-8, **label)
    lemma = classifier.classifier_error_bounds(delta)
    difference, z = by.retain - best.retain, float(w @ (p * by.retain))
    tally.at_most("Lemma 2(i): E_p (f-f*)^2", float(w @ (p * difference**2)), lemma.mean_square, **label)
    tally.at_most("Lemma 2(i): E_p |f-f*|", float(w @ (p * np.abs(difference))), lemma.mean_absolute, **label)
    roots = float(w @ (p * (np.sqrt(by.retain) - np.sqrt(best.retain)) ** 2))
    tally.at_most("Lemma 2(ii): E_p (sqrt f - sqrt f*)^2", roots, lemma.mean_square_root, **label)
    tally.at_most("Lemma 2(iii): |Z_1 - (1-gamma)|", abs(z - (1 - gamma)), lemma.retained_mass, **label)
    for prior in priors:  # the classifier taken as the corrected one; its own prior is `prior`
        shift = np.exp(-classifier.prior_logit_shift(gamma, prior))
        odds = Classifier(shift * by.retain / (shift * by.retain + by.forget), by.forget / (shift * by.retain + by.forget))
        at_prior = risk(odds, case.problem, prior)
        factor = classifier.prior_shift_risk_factor(gamma, prior)
        tally.at_most("Lemma 3: upper", delta, factor.upper * at_prior, **label, prior=prior)
        tally.at_least("Lemma 3: lower", delta, factor.lower * at_prior, **label, prior=prior)
    kappa = classifier.retain_log_ratio(by.retain, r, f, gamma, w)
    tally.at_most("Lemma 5(ii): kappa <= rho(delta)", kappa, bounds.retain_log_ratio_bound(delta, gamma), **label)
    on = r > 0
    tally.at_most("Lemma 5(ii): kappa <= E_{p_r} -log f", kappa, -float((w * r)[on] @ log(by.retain[on])), **label)
    hat = np.exp(guided_log_density(log(p), log(by.retain), 1.0, log(w)).log_density)
    constants = TemperingConstants.from_densities(r, f, gamma, 1.0, w)
    tally.at_most("Theorem 1(a): retain error", retain_error(r, hat, w), bounds.plain_retain_error_bound(delta, gamma), **label)
    plain = bounds.plain_forget_error_bound(delta, gamma, constants.forget_sup, constants.overlap)
    measured = forget_error(hat, r, f, w)
    tally.at_most("Theorem 1(b): forget error", measured, plain, 1e-14 * constants.forget_sup, **label)


def check_tempered(tally: Tally, case: Case, c: TemperingConstants) -> None:
    """Lemma 5(i, iii), Theorem 2 and the critical temperature."""
    (r, f, w), gamma, by, delta, label = case
    t, label = c.temperature, {**label, "T": c.temperature}
    p = (1 - gamma) * r + gamma * f
    guided = guided_log_density(log(p), log(by.retain), t, log(w))
    hat, z = np.exp(guided.log_density), math.exp(guided.log_normalizer)
    kappa = classifier.retain_log_ratio(by.retain, r, f, gamma, w)
    deviation, rounding = bounds.normalizer_deviation_bound(c, delta), 1e-14 * c.power_mass
    tally.at_most("Lemma 5(i): |Z_hat_T - Z_T| <= D_T", abs(z - c.normalizer), deviation, rounding, **label)
    floor = math.exp(bounds.log_guided_normalizer_lower_bound(c.log_p_bar, gamma, t, kappa))
    tally.at_least("Lemma 5(iii): Z_hat_T from below", z, floor, rounding, **label)
    retain, forget = retain_error(r, hat, w), forget_error(hat, r, f, w)
    tally.at_most("Theorem 2(a): retain error", retain, bounds.tempered_retain_error_bound(c, delta), **label)
    exact = bounds.tempered_retain_error_bound(c, delta, kappa)
    tally.at_most("Theorem 2(a): with the exact kappa", retain, exact, **label)
    rounding = 1e-14 * (forget + c.overlap)
    tally.at_most("Theorem 2(b): forget error", forget, bounds.tempered_forget_error_bound(c, delta), rounding, **label)
    exact = bounds.tempered_forget_error_bound(c, delta, kappa)
    tally.at_most("Theorem 2(b): with the exact kappa", forget, exact, rounding, **label)
    power = gamma ** -(1 - 1 / t) * c.forget_sup ** (1 / t)
    tally.at_most("(1.3): A_T <= gamma^-beta H^(1/T)", c.tempered_sup, power, **label)
    if not c.shared_floor:
        return
    for name, value in (("rho", None), ("the exact kappa", kappa)):
        bound = bounds.sup_norm_forget_error_bound(delta, gamma, c.forget_sup, c.log_p_bar, c.overlap, t, value)
        tally.at_most(f"Theorem 2(c): with {name}", forget, bound, rounding, **label)
    if c.overlap == 0 and t == 1:
        check_critical(tally, case, c)


def check_critical(tally: Tally, case: Case, c: TemperingConstants) -> None:
    """The critical temperature keeps its promise, `F / p_bar <= e^kappa tolerance`, on disjoint supports."""
    (r, f, w), gamma, by, delta, label = case
    p = (1 - gamma) * r + gamma * f
    kappa = classifier.retain_log_ratio(by.retain, r, f, gamma, w)
    for tolerance in (0.3, 1.0, 10.0):
        t = temperature.critical_temperature(delta, gamma, c.concentration_gap, tolerance)
        if math.isfinite(t):
            hat = np.exp(guided_log_density(log(p), log(by.retain), t, log(w)).log_density)
            relative = forget_error(hat, r, f, w) / math.exp(c.log_p_bar)
            name = "Section 8: F / p_bar at the critical T"
            tally.at_most(name, relative, math.exp(kappa) * tolerance, **label, tolerance=tolerance)


def check_uncorrected_prior(tally: Tally, case: Case, priors: Sequence[float]) -> None:
    """Proposition 4."""
    (r, f, w), gamma = case.problem, case.gamma
    for prior in priors:
        target = guided_log_density(log((1 - gamma) * r + gamma * f), log(bayes(case.problem, prior).retain), 1.0, log(w))
        bias = retain_error(r, np.exp(target.log_density), w)
        bound = classifier.uncorrected_prior_bias_bound(gamma, prior)
        tally.at_most("Proposition 4: prior left uncorrected", bias, bound, family=case.label["family"], gamma=gamma, prior=prior)


def check_bounded_logits(tally: Tally, case: Case, temperatures: Sequence[float]) -> None:
    """Theorem 3': clip the Bayes log-odds, and even the best of such classifiers leaks."""
    (r, f, w), gamma = case.problem, case.gamma
    p, best = (1 - gamma) * r + gamma * f, bayes(case.problem, gamma)
    for bound in (2.0, 5.0):
        by = np.clip(best.retain, expit(-bound), expit(bound))
        tally.at_most("Theorem 3': excess risk of clipping", classifier.excess_bce_risk(by, r, f, gamma, w),
                      math.log1p(math.exp(-bound)), **case.label, B=bound)  # fmt: skip
        for t in temperatures:
            constants = TemperingConstants.from_densities(r, f, gamma, t, w)
            least = bounds.bounded_logit_forget_error_lower_bound(constants, bound)
            if least > 0:
                hat = np.exp(guided_log_density(log(p), log(by), t, log(w)).log_density)
                tally.at_least("Theorem 3': least forget error", forget_error(hat, r, f, w), least, **case.label, T=t, B=bound)
