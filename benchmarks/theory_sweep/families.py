"""Theorems 3 and 4 and Proposition 5 on their own families."""

from __future__ import annotations

import numpy as np
from benchmarks.theory_sweep.problems import Problem, bayes
from benchmarks.theory_sweep.tally import Tally
from scipy.special import logsumexp

from tempertilt.theory import bounds, classifier, spike
from tempertilt.theory.checks import log
from tempertilt.theory.constants import TemperingConstants
from tempertilt.theory.guidance import forget_error, guided_log_density, retain_error


def check_spike_family(tally: Tally) -> None:
    """Theorem 3: closed forms against direct evaluation, and its two-sided bounds."""
    gamma = 0.1
    for s in (0.25, 0.5, 0.75):
        for eps in (1e-1, 1e-2, 1e-4, 1e-6, 1e-8):
            delta = eps**s
            r, f, by, w = spike.spike_example(eps, gamma, delta)
            p = (1 - gamma) * r + gamma * f
            for t in (1.0, 1.1, 1 / s, 2 / s):
                hat = np.exp(guided_log_density(log(p), log(by), t, log(w)).log_density)
                forget, retain = forget_error(hat, r, f, w), retain_error(r, hat, w)
                closed = spike.spike_forget_error(eps, gamma, delta, t), spike.spike_retain_error(eps, gamma, delta, t)
                label = {"s": s, "eps": eps, "T": t}
                deviation = max(abs(forget / closed[0] - 1), abs(retain - closed[1]))
                tally.at_most("Theorem 3: |closed form - direct| <= 1e-10", deviation, 1e-10, 0.0, **label)
                low, high = spike.spike_forget_error_bounds(eps, gamma, delta, t)
                tally.at_most("Theorem 3: forget error from above", forget, high, **label)
                tally.at_least("Theorem 3: forget error from below", forget, low, **label)


def check_minimax(tally: Tally) -> None:
    """Theorem 4: Le Cam's value of its two problems, evaluated exactly, is at least the bound."""
    height = 1e3
    for n in (2, 3, 10, 100, 1000):
        exact = height / n / 2 * (1 - 1 / n) ** n
        least = bounds.minimax_forget_error_lower_bound(height, n)
        tally.at_least("Theorem 4(i): gamma unknown", exact, least, n=n)
        for m, gamma in ((n, 0.5), (10 * n, 0.1), (2 * n, 0.01)):
            rho = min(1 / n, gamma / ((1 - gamma) * m))
            moved = (1 - gamma) * rho / gamma
            exact = height * rho * (1 - moved) / 2 * (1 - rho) ** n * (1 - moved) ** m
            least = bounds.minimax_forget_error_lower_bound(height, n, m, gamma)
            tally.at_least("Theorem 4(ii): gamma known", exact, least, n=n, m=m, gamma=gamma)


def check_low_density(tally: Tally) -> None:
    """Proposition 5: excess risk and deviation as stated, and the bound D_T of Lemma 5(i) on it."""
    for t in (2.0, 3.0, 5.0):
        for delta in (1e-2, 1e-4, 1e-6):
            (r, f, by, w), gamma, deviation = spike.low_density_example(delta, t)
            p = (1 - gamma) * r + gamma * f
            z = [float(np.exp(logsumexp(log(p) / t + log(of)))) for of in (by, bayes(Problem(r, f, w), gamma).retain)]
            stated = abs(abs(z[0] - z[1]) / deviation - 1) + abs(classifier.excess_bce_risk(by, r, f, gamma) / delta - 1)
            tally.at_most("Proposition 5: |stated - direct| <= 1e-10", stated, 1e-10, 0.0, T=t, delta=delta)
            constants = TemperingConstants.from_densities(r, f, gamma, t, w)
            bound = bounds.normalizer_deviation_bound(constants, delta)
            tally.at_most("Proposition 5: |Z_hat_T - Z_T| <= D_T, rate tight", deviation, bound, T=t, delta=delta)
