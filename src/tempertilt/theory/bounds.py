"""What is guaranteed, and what no one can avoid: Theorems 1, 2, 3' and 4 with Lemma 5. One function for each bound."""

from __future__ import annotations

import math

import numpy as np

from tempertilt.errors import ConfigError
from tempertilt.theory.checks import check_at_least, check_positive, check_risk, check_share, check_tempering
from tempertilt.theory.constants import TemperingConstants


def plain_retain_error_bound(delta: float, gamma: float) -> float:
    """Theorem 1(a): `KL(p_r || p_hat) <= delta / (1 - gamma)`, nats. The height of the spike does not enter.

    Raises:
        ConfigError: delta is negative, or gamma not in (0, 1).
    """
    return check_risk(delta) / (1 - check_share(gamma))


def plain_forget_error_bound(delta: float, gamma: float, forget_sup: float, overlap: float) -> float:
    """Theorem 1(b): `F_1 <= min(H sqrt(2K), H K + 2 sqrt(omega H K), 2H)` with `K = delta / (1-gamma)`, density unit.

    Args:
        forget_sup: `H = sup p_f`.
        overlap: `omega = int p_f p_r`.

    Raises:
        ConfigError: an argument is out of range.
    """
    k = plain_retain_error_bound(delta, gamma)
    h, omega = check_positive(forget_sup, "forget_sup"), check_at_least(overlap, 0, "overlap")
    return min(h * math.sqrt(2 * k), h * k + 2 * math.sqrt(omega * h * k), 2 * h)


def normalizer_deviation_bound(constants: TemperingConstants, delta: float) -> float:
    """Lemma 5(i): `D_T >= |Z_hat_T - Z_T|`, the smallest over theta of `(delta/2)^theta (int p^s)^(1-theta)`.

    Raises:
        ConfigError: delta is negative.
    """
    if check_risk(delta) == 0:
        return 0.0
    log_half = math.log(delta / 2)
    with np.errstate(over="ignore"):
        return float(np.exp(min(t * log_half + (1 - t) * log_int for t, log_int in constants.power_integrals)))


def retain_log_ratio_bound(delta: float, gamma: float) -> float:
    """Lemma 5(ii): `kappa = E_{p_r} log(f*/f) <= rho(delta) = (delta + gamma log(1 + sqrt(delta/2)/gamma)) / (1-gamma)`, nats.

    Raises:
        ConfigError: delta is negative, or gamma not in (0, 1).
    """
    delta, gamma = check_risk(delta), check_share(gamma)
    return (delta + gamma * math.log1p(math.sqrt(delta / 2) / gamma)) / (1 - gamma)


def log_guided_normalizer_lower_bound(log_p_bar: float, gamma: float, temperature: float, kappa: float) -> float:
    """Lemma 5(iii): `log Z_hat_T >= log(1-gamma) - beta log p_bar - kappa`; holds for every classifier, never vacuous.

    Raises:
        ConfigError: gamma is not in (0, 1), or T below 1.
    """
    beta = 1 - 1 / check_tempering(temperature)
    return math.log1p(-check_share(gamma)) - beta * log_p_bar - kappa


def tempered_retain_error_bound(constants: TemperingConstants, delta: float, kappa: float | None = None) -> float:
    """Theorem 2(a): `KL(p_r || p_hat^(T)) <= B_r(T) + min(A, B)`, nats; at T = 1 form B is Theorem 1(a).

    Args:
        constants: of the densities, gamma and T.
        delta: excess risk, nats.
        kappa: any upper bound of `E_{p_r} log(f*/f)`, such as the cross-entropy on retain data; `rho(delta)` by default.

    Raises:
        ConfigError: delta is negative.
    """
    c, root = constants, math.sqrt(check_risk(delta) / 2)
    kappa = retain_log_ratio_bound(delta, c.gamma) if kappa is None else kappa
    deviation = normalizer_deviation_bound(c, delta)
    form_a = kappa + math.log(min(1 + deviation / c.normalizer, c.power_mass / c.normalizer))
    if root >= 1 - c.gamma or not math.isfinite(c.square_mass):
        return c.retain_bias + form_a
    keep = 1 - c.gamma
    spread = c.square_mass / c.normalizer**2 - 2 * c.power_mass / (c.normalizer * keep) + 1 / keep**2
    spread = math.sqrt(max(spread, 0.0)) if c.temperature > 1 else 0.0
    form_b = delta / keep + math.log1p(root * spread / (1 - root / keep))
    return c.retain_bias + min(form_a, form_b)


def tempered_forget_error_bound(constants: TemperingConstants, delta: float, kappa: float | None = None) -> float:
    """Theorem 2(b): `F_T <= min(bias form, direct form)`, density unit; grows with the spike like `H^(1/T)`.

    Args and errors as `tempered_retain_error_bound`.
    """
    c, delta = constants, check_risk(delta)
    kappa = retain_log_ratio_bound(delta, c.gamma) if kappa is None else kappa
    deviation = normalizer_deviation_bound(c, delta)
    floor = math.exp(log_guided_normalizer_lower_bound(c.log_p_bar, c.gamma, c.temperature, kappa))
    z_low = max(c.normalizer - deviation, floor)
    if z_low <= 0:  # kappa so large that the floor is below the smallest number
        return math.inf
    a, o = c.tempered_sup, c.tempered_overlap
    error = min(a * math.sqrt(delta / 2), a * delta + 2 * math.sqrt(a * delta * o))
    shift = o / c.normalizer * min(deviation / z_low, max(1.0, c.normalizer / z_low - 1))
    bias_form = c.forget_bias + error / z_low + shift
    direct_form = c.overlap + (math.sqrt(o) + math.sqrt(a * delta)) ** 2 / z_low
    return min(bias_form, direct_form)


def sup_norm_forget_error_bound(
    delta: float,
    gamma: float,
    forget_sup: float,
    log_p_bar: float,
    overlap: float,
    temperature: float,
    kappa: float | None = None,
) -> float:
    """Theorem 2(c): `F_T <= omega + e^kappa (sqrt omega + sqrt x)^2`, `x = (H delta / (1-gamma)) e^(-beta Lambda)`.

    Valid where `p >= p_bar` on the common support of the two classes (`TemperingConstants.shared_floor`), in particular
    where they have none (`overlap = 0`: `F_T <= e^kappa x`). That is the caller's to know.

    Args:
        forget_sup: `H = sup p_f`, density unit.
        log_p_bar: `E_{p_r} log p`, nats.
        overlap: `omega`, density unit.
        kappa: as in `tempered_retain_error_bound`.

    Raises:
        ConfigError: an argument is out of range.
    """
    delta, gamma = check_risk(delta), check_share(gamma)
    beta = 1 - 1 / check_tempering(temperature)
    h, omega = check_positive(forget_sup, "forget_sup"), check_at_least(overlap, 0, "overlap")
    kappa = retain_log_ratio_bound(delta, gamma) if kappa is None else kappa
    gap = math.log(gamma * h) - log_p_bar
    x = h * delta / (1 - gamma) * math.exp(-beta * gap)
    with np.errstate(over="ignore"):
        return omega + float(np.exp(kappa)) * (math.sqrt(omega) + math.sqrt(x)) ** 2


def bounded_logit_forget_error_lower_bound(constants: TemperingConstants, logit_bound: float) -> float:
    """Theorem 3': a classifier with log-odds `>= -B` everywhere has `F_T >= sigma(-B) gamma^(1/T) int p_f^(1+1/T) / N_T - omega`.

    Whatever it was trained on. At T = 1 it grows like `H`. Density unit; 0 where the bound is negative.

    Raises:
        ConfigError: the bound on the log-odds is negative.
    """
    c = constants
    floor = 1 / (1 + math.exp(check_at_least(logit_bound, 0, "logit_bound")))
    return max(0.0, floor * float(c.gamma ** (1 / c.temperature)) * c.forget_power / c.power_mass - c.overlap)


def minimax_forget_error_lower_bound(
    forget_sup: float, n_retain: int, n_forget: int | None = None, gamma: float | None = None
) -> float:
    """Theorem 4: no estimator from samples has a worst-case `E F` below this, tempered or not; density unit.

    `H / (8n)` if gamma is not known (p and p_f are, exactly); `(H/64) min(1/n, gamma / ((1-gamma) m))` if it is.

    Args:
        forget_sup: `H`.
        n_retain: n >= 2 retain samples.
        n_forget: m >= 2 forget samples; with `gamma`, for the second form.
        gamma: the known share.

    Raises:
        ConfigError: an argument is out of range, or only one of `n_forget` and `gamma` is given.
    """
    h, n = check_positive(forget_sup, "forget_sup"), check_at_least(n_retain, 2, "n_retain")
    if (n_forget is None) != (gamma is None):
        raise ConfigError("n_forget and gamma go together: give both (gamma known) or neither (gamma unknown)")
    if n_forget is None or gamma is None:
        return h / (8 * n)
    m, gamma = check_at_least(n_forget, 2, "n_forget"), check_share(gamma)
    return h / 64 * min(1 / n, gamma / ((1 - gamma) * m))
