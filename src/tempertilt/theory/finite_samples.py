"""From numbers of samples to the classifier's excess risk: Theorem 5, and bounds from held-out data (Section 9).

In all of them: n retain and m forget samples, independent, weighted `1 - gamma` and `gamma` in the empirical risk; log-odds in
`[-B, B]`; the bound holds with probability `>= 1 - eta` over the samples. `approx_error` is `inf_G R - R(f*)`, what the class
of classifiers cannot reach with any number of samples. Every function raises `ConfigError` for an argument out of range.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tempertilt.errors import DataError
from tempertilt.theory.checks import check_at_least, check_positive, check_samples, check_share
from tempertilt.theory.classifier import binary_kl, prior_shift_risk_factor


def sampling_scale(n_retain: int, n_forget: int, gamma: float) -> float:
    """`S_{n,m} = sqrt((1-gamma)^2 / n + gamma^2 / m)`, dimensionless."""
    n, m = check_at_least(n_retain, 1, "n_retain"), check_at_least(n_forget, 1, "n_forget")
    gamma = check_share(gamma)
    return math.hypot((1 - gamma) / math.sqrt(n), gamma / math.sqrt(m))


def excess_risk_bound_finite_class(
    n_retain: int, n_forget: int, gamma: float, logit_bound: float, n_classifiers: int, eta: float, approx_error: float = 0.0
) -> float:
    """Theorem 5, best of N classifiers: `delta <= approx_error + 2 B S sqrt(log(2N/eta) / 2)`, nats."""
    s, b = sampling_scale(n_retain, n_forget, gamma), check_positive(logit_bound, "logit_bound")
    size, eta = check_at_least(n_classifiers, 1, "n_classifiers"), check_share(eta, "eta")
    return _approximation(approx_error) + 2 * b * s * math.sqrt(math.log(2 * size / eta) / 2)


def excess_risk_bound_linear(
    n_retain: int, n_forget: int, gamma: float, weight_norm: float, feature_norm: float, eta: float, approx_error: float = 0.0
) -> float:
    """Theorem 5, `<w, phi>` with `|w| <= W`, `|phi| <= X` (so `B = W X`), nats.

    `delta <= approx_error + 2WX ((1-gamma)/sqrt n + gamma/sqrt m) + 2WX S sqrt(log(2/eta) / 2)`.
    """
    s, eta = sampling_scale(n_retain, n_forget, gamma), check_share(eta, "eta")
    b = check_positive(weight_norm, "weight_norm") * check_positive(feature_norm, "feature_norm")
    width = (1 - gamma) / math.sqrt(n_retain) + gamma / math.sqrt(n_forget)
    return _approximation(approx_error) + 2 * b * width + 2 * b * s * math.sqrt(math.log(2 / eta) / 2)


def excess_risk_bound_lipschitz(
    n_retain: int,
    n_forget: int,
    gamma: float,
    logit_bound: float,
    n_parameters: int,
    lipschitz: float,
    weight_norm: float,
    eta: float,
    approx_error: float = 0.0,
    cover: float | None = None,
) -> float:
    """Theorem 5, k parameters in a ball of radius W with log-odds L-Lipschitz in them, nats.

    `delta <= approx_error + 2e + B S (sqrt((k log(1 + 2WL/e) + log(2/eta)) / 2) + sqrt(log(2/eta) / 2))` for any `e > 0`
    (`cover`; `B S` by default).
    """
    s, b = sampling_scale(n_retain, n_forget, gamma), check_positive(logit_bound, "logit_bound")
    k, eta = check_at_least(n_parameters, 1, "n_parameters"), check_share(eta, "eta")
    reach = check_positive(lipschitz, "lipschitz") * check_positive(weight_norm, "weight_norm")
    e = b * s if cover is None else check_positive(cover, "cover")
    tail = math.log(2 / eta)
    entropy = math.sqrt((k * math.log1p(2 * reach / e) + tail) / 2)
    return _approximation(approx_error) + 2 * e + b * s * (entropy + math.sqrt(tail / 2))


def excess_risk_bound_pseudodim(
    n_retain: int, n_forget: int, gamma: float, logit_bound: float, pseudo_dimension: int, eta: float, approx_error: float = 0.0
) -> float:
    """Theorem 5, a class of pseudo-dimension d: `Rad_n <= 56 B sqrt(d/n)`, explicit but loose, nats."""
    s, b = sampling_scale(n_retain, n_forget, gamma), check_positive(logit_bound, "logit_bound")
    d, eta = check_at_least(pseudo_dimension, 1, "pseudo_dimension"), check_share(eta, "eta")
    complexity = 56 * b * math.sqrt(d) * ((1 - gamma) / math.sqrt(n_retain) + gamma / math.sqrt(n_forget))
    return _approximation(approx_error) + 2 * complexity + 2 * b * s * math.sqrt(math.log(2 / eta) / 2)


def excess_risk_bound_fast(
    n_retain: int, n_forget: int, gamma: float, logit_bound: float, n_classifiers: int, eta: float
) -> float:
    """Theorem 5, fast rate: maximum likelihood over N classifiers one of which is right, at the samples' own prior `m/(n+m)`.

    `delta_pi <= (2 + log(1 + e^B)) 2 log(N/eta) / (n+m)`, then the upper factor of Lemma 3, nats.
    """
    n, m = check_at_least(n_retain, 1, "n_retain"), check_at_least(n_forget, 1, "n_forget")
    b, size = check_positive(logit_bound, "logit_bound"), check_at_least(n_classifiers, 1, "n_classifiers")
    at_prior = (2 + float(np.logaddexp(0, b))) * 2 * math.log(size / check_share(eta, "eta")) / (n + m)
    return prior_shift_risk_factor(gamma, m / (n + m)).upper * at_prior


class Bracket(NamedTuple):
    """An upper and a lower confidence bound of the excess risk, nats; each holds with probability `>= 1 - eta` by itself."""

    upper: float
    lower: float


def held_out_risk(retain_logits: ArrayLike, forget_logits: ArrayLike, gamma: float) -> float:
    """`(1-gamma) mean(-log f)` over retain plus `gamma mean(-log(1-f))` over forget samples, nats.

    Args:
        retain_logits, forget_logits: log-odds of retain at the true prior, `(n,)` and `(m,)`.

    Raises:
        ConfigError: gamma is not in (0, 1).
        DataError: a set is empty or not finite.
    """
    retain = check_samples(retain_logits, "retain_logits")
    forget = check_samples(forget_logits, "forget_logits")
    gamma = check_share(gamma)
    return float((1 - gamma) * np.logaddexp(0, -retain).mean() + gamma * np.logaddexp(0, forget).mean())


def held_out_excess_risk_bound(
    retain_logits: ArrayLike,
    forget_logits: ArrayLike,
    gamma: float,
    logit_bound: float,
    eta: float,
    entropy_floor: float = 0.0,
) -> Bracket:
    """What samples that the classifier was not fitted on say of its excess risk (Section 9).

    Upper: held-out risk `+ B S sqrt(log(1/eta) / 2) - entropy_floor`, conservative where the classes overlap and the floor
    is 0. Lower: Lemma 2(iii), the smallest `kl(1-gamma || z)` over Hoeffding's interval of `Z_1 = E_p f`.

    Args:
        retain_logits, forget_logits: log-odds of retain, corrected to the prior gamma, `(n,)` and `(m,)`, nats.
        gamma: share of forget data.
        logit_bound: B, chosen without looking at these samples.
        eta: 1 - confidence.
        entropy_floor: a known lower bound of `R(f*) = H(Y|Z)`, nats; 0 is exact for disjoint supports.

    Raises:
        ConfigError: an argument is out of range.
        DataError: a set is empty or not finite, or a logit is beyond the bound.
    """
    retain = check_samples(retain_logits, "retain_logits")
    forget = check_samples(forget_logits, "forget_logits")
    gamma, eta = check_share(gamma), check_share(eta, "eta")
    b, floor = check_positive(logit_bound, "logit_bound"), check_at_least(entropy_floor, 0, "entropy_floor")
    largest = float(max(np.abs(retain).max(), np.abs(forget).max()))
    if largest > b:
        raise DataError(f"a log-odds of {largest:g} is beyond logit_bound {b:g}; clip them, or give the bound of the classifier")
    s = sampling_scale(retain.size, forget.size, gamma)
    upper = held_out_risk(retain, forget, gamma) + b * s * math.sqrt(math.log(1 / eta) / 2) - floor
    kept = (1 - gamma) * float(np.mean(1 / (1 + np.exp(-retain)))) + gamma * float(np.mean(1 / (1 + np.exp(-forget))))
    width = s * math.sqrt(math.log(2 / eta) / 2)
    nearest = min(max(1 - gamma, kept - width), kept + width)
    return Bracket(max(0.0, upper), float(binary_kl(1 - gamma, min(max(nearest, 0.0), 1.0))))


def _approximation(approx_error: float) -> float:
    return check_at_least(approx_error, 0, "approx_error")
