"""The constants that the bounds of the theory are made of (Section 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from tempertilt.theory.checks import check_pair, check_share, check_tempering, log
from tempertilt.theory.guidance import forget_tempering_bias, retain_tempering_bias

INTERPOLATIONS = 11  # values of theta in Lemma 5 that are tried; each gives a valid bound


class PowerIntegral(NamedTuple):
    """`log int_{p>0} p^s` with `s = (1/T - theta) / (1 - theta)`, for one theta of Lemma 5(i)."""

    theta: float
    log_integral: float


@dataclass(frozen=True)
class TemperingConstants:
    """What Theorems 1 to 3' need to know of two densities, a share and a temperature."""

    gamma: float = field(metadata={"help": "share of forget data"})
    temperature: float = field(metadata={"help": "T >= 1"})
    forget_sup: float = field(metadata={"help": "H = sup p_f, density unit"})
    overlap: float = field(metadata={"help": "omega = int p_f p_r, density unit"})
    tempered_sup: float = field(metadata={"help": "A_T = sup p_f p^(1/T - 1)"})
    normalizer: float = field(metadata={"help": "Z_T = int p^(1/T) f*"})
    power_mass: float = field(metadata={"help": "N_T = int p^(1/T)"})
    square_mass: float = field(metadata={"help": "M_T = int_{p>0} p^(2/T - 1)"})
    tempered_overlap: float = field(metadata={"help": "o_T = int p_f p^(1/T) f*"})
    forget_power: float = field(metadata={"help": "int p_f^(1 + 1/T)"})
    log_p_bar: float = field(metadata={"help": "E_{p_r} log p, nats"})
    log_p_variance: float = field(metadata={"help": "sigma^2 = Var_{p_r} log p, nats^2"})
    log_p_range: float = field(metadata={"help": "r = range of log p on the support of p_r, nats"})
    retain_bias: float = field(metadata={"help": "B_r(T), nats"})
    forget_bias: float = field(metadata={"help": "B_f(T), density unit"})
    shared_floor: bool = field(metadata={"help": "p >= p_bar wherever both densities are positive: the hypothesis of Thm 2(c)"})
    power_integrals: tuple[PowerIntegral, ...] = field(metadata={"help": "integrals of Lemma 5(i), one for each theta"})

    @property
    def beta(self) -> float:
        """`1 - 1/T`."""
        return 1 - 1 / self.temperature

    @property
    def concentration_gap(self) -> float:
        """`Lambda = log(gamma H / p_bar)`, nats."""
        return math.log(self.gamma * self.forget_sup) - self.log_p_bar

    @classmethod
    def from_densities(
        cls, p_retain: ArrayLike, p_forget: ArrayLike, gamma: float, temperature: float, weights: ArrayLike | None = None
    ) -> TemperingConstants:
        """The constants of densities `(k,)` with cell measures `weights (k,)` (ones by default).

        Raises:
            ConfigError: gamma is not in (0, 1), or T below 1.
            DataError: a density is negative, not normalised, or of another shape.
        """
        retain, forget, w = check_pair(p_retain, p_forget, weights)
        gamma, temperature = check_share(gamma), check_tempering(temperature)
        beta = 1 - 1 / temperature
        p = (1 - gamma) * retain + gamma * forget
        on, kept, spike = p > 0, retain > 0, forget > 0
        log_p, log_w = log(p), log(w)
        mass = (w * retain)[kept]
        log_kept = log_p[kept]
        mean = float(mass @ log_kept / mass.sum())
        shared = kept & spike

        def integral(log_of: np.ndarray, where: np.ndarray) -> float:
            return float(np.exp(logsumexp((log_of + log_w)[where]))) if where.any() else 0.0

        thetas = np.linspace(0, min(0.5, 1 / temperature), INTERPOLATIONS)
        powers = [(1 / temperature - theta) / (1 - theta) for theta in thetas]
        return cls(
            gamma=gamma,
            temperature=temperature,
            forget_sup=float(forget.max()),
            overlap=float(w @ (forget * retain)),
            tempered_sup=float(np.exp((log(forget)[spike] - beta * log_p[spike]).max())),
            normalizer=(1 - gamma) * integral(log(retain) - beta * log_p, kept),
            power_mass=integral(log_p / temperature, on),
            square_mass=integral((2 / temperature - 1) * np.where(on, log_p, 0.0), on),
            tempered_overlap=(1 - gamma) * integral(log(forget) + log(retain) - beta * np.where(on, log_p, 0.0), shared),
            forget_power=integral((1 + 1 / temperature) * log(forget), spike),
            log_p_bar=mean,
            log_p_variance=float(mass @ (log_kept - mean) ** 2 / mass.sum()),
            log_p_range=float(np.ptp(log_kept)),
            retain_bias=retain_tempering_bias(log_kept, temperature, mass),
            forget_bias=forget_tempering_bias(retain, forget, gamma, temperature, w),
            shared_floor=bool((log_p[shared] >= mean).all()),
            power_integrals=tuple(
                PowerIntegral(float(theta), float(logsumexp((s * log_p + log_w)[on]))) for theta, s in zip(thetas, powers)
            ),
        )
