"""From a fitted classifier and its held-out data to what the theory guarantees, recommends, and does not cover."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

from tempertilt.theory.checks import check_positive, check_samples, check_share, check_tempering
from tempertilt.theory.classifier import correct_prior_shift
from tempertilt.theory.finite_samples import Bracket, held_out_excess_risk_bound, held_out_risk
from tempertilt.theory.guidance import retain_tempering_bias
from tempertilt.theory.temperature import concentration_gap, critical_temperature, optimal_temperature

FEW_EFFECTIVE = 0.2  # share of the samples below which the weights p^(-beta) rest on too few of them


class Sides(NamedTuple):
    """One number for each retain sample `(n,)` and each forget sample `(m,)`."""

    retain: ArrayLike
    forget: ArrayLike


@dataclass(frozen=True)
class Diagnosis:
    """What samples say of the constants of the theory, the temperature that follows, and where that goes beyond the theory."""

    gamma: float = field(metadata={"help": "share of forget data that was assumed"})
    n_retain: int = field(metadata={"help": "retain samples with a likelihood"})
    n_forget: int = field(metadata={"help": "forget samples with a likelihood"})
    held_out_retain: int = field(metadata={"help": "retain samples that the head was not fitted on"})
    held_out_forget: int = field(metadata={"help": "forget samples that the head was not fitted on"})
    delta_lower: float = field(metadata={"help": "excess risk, lower confidence bound, nats"})
    delta_estimate: float = field(metadata={"help": "held-out risk, an estimate that errs high where the classes overlap, nats"})
    delta_upper: float = field(metadata={"help": "excess risk, upper confidence bound, nats"})
    kappa: float = field(metadata={"help": "mean -log f on held-out retain samples, nats"})
    concentration_gap: float = field(metadata={"help": "Lambda, nats; errs low"})
    log_p_bar: float = field(metadata={"help": "mean log p of retain samples, nats"})
    log_p_std: float = field(metadata={"help": "standard deviation of log p over retain samples, nats"})
    retain_bias: float = field(metadata={"help": "B_r at the recommended temperature, nats; errs low"})
    recommended_temperature: float = field(metadata={"help": "the minimum of (8.1), from the estimate of delta"})
    critical_temperature: float = field(metadata={"help": "the smallest T whose bound meets the tolerance; inf if none does"})
    temperature: float | None = field(metadata={"help": "T in use, if it was given"})
    retain_bias_in_use: float | None = field(metadata={"help": "B_r at the temperature in use, nats; None below T = 1"})
    outside: tuple[str, ...] = field(
        metadata={"help": "why the recommendation is outside what the theory covers; empty if it is not"}
    )
    remarks: tuple[str, ...] = field(metadata={"help": "what else there is to know"})

    @property
    def covered(self) -> bool:
        """Whether every assumption that can be checked on the samples holds for the recommendation."""
        return not self.outside

    @property
    def sentence(self) -> str:
        """The recommendation in one sentence, with every reason why the theory does not cover it."""
        text = f"Theory recommends T = {self.recommended_temperature:.2f}"
        if self.covered:
            return text + "; the bounds cover it."
        return text + ", outside what the theory covers: " + "; ".join(self.outside) + "."

    def report(self) -> dict[str, Any]:
        """JSON-ready; None where a temperature is infinite."""
        values = {name: None if value == math.inf else value for name, value in asdict(self).items()}
        return values | {"covered": self.covered, "sentence": self.sentence}

    def lines(self) -> list[str]:
        """The diagnosis as text: numbers, then the sentence, then the remarks."""
        bias = f"retain error at least {self.retain_bias:.2g} nats at the recommended T"
        if self.temperature is not None and self.retain_bias_in_use is not None:
            bias += f", {self.retain_bias_in_use:.2g} at T = {self.temperature:g} in use"
        return [
            f"excess risk of the head {self.delta_lower:.2g} to {self.delta_upper:.2g} nats (estimate {self.delta_estimate:.2g}) "
            f"on {self.held_out_retain} retain and {self.held_out_forget} forget held out",
            f"forget spike {self.concentration_gap:.1f} nats above typical retained records ({self.n_forget} against "
            f"{self.n_retain}, whose log-likelihoods have standard deviation {self.log_p_std:.1f})",
            bias,
            f"critical T {_number(self.critical_temperature)}",
            self.sentence,
            *self.remarks,
        ]


def diagnose(
    log_likelihoods: Sides,
    head_logits: Sides,
    *,
    gamma: float = 0.5,
    train_forget_prior: float = 0.5,
    temperature: float | None = None,
    token_rule: bool = False,
    penalty: float = 1.0,
    tolerance: float = 1.0,
    t_max: float = 3.0,
    logit_bound: float = 10.0,
    eta: float = 0.05,
) -> Diagnosis:
    """What Sections 8 and 9 say of a fitted classifier: a bracket of its excess risk, the gap, the cost and choice of T.

    Args:
        log_likelihoods: `log p` of samples under the base, natural log; of sequences their totals. Retain `(n,)`, forget `(m,)`.
        head_logits: the classifier's log-odds of retain, as trained, on samples that it was not fitted on; `(n',)`, `(m',)`.
        gamma: share of forget data in the base's distribution.
        train_forget_prior: share of forget data in training; the logits are corrected for it by (1.1).
        temperature: T in use, to compare.
        token_rule: T and the classifier are applied token by token, to whole sequences' likelihoods here: says so.
        penalty: `lambda` of (8.1).
        tolerance: of the relative forget error `F_T / p_bar`, for the critical temperature.
        t_max: largest T recommended.
        logit_bound: corrected log-odds are clipped to `[-B, B]` for the bracket, which is then of the clipped classifier.
        eta: each end of the bracket holds with probability `>= 1 - eta`.

    Returns:
        A `Diagnosis`; `sentence` and `lines()` are its text.

    Raises:
        ConfigError: an option is out of range.
        DataError: a set of samples is empty or not finite.
    """
    gamma, t_max = check_share(gamma), check_tempering(t_max)
    log_p_retain = check_samples(log_likelihoods.retain, "log_likelihoods.retain")
    log_p_forget = check_samples(log_likelihoods.forget, "log_likelihoods.forget")
    bound = check_positive(logit_bound, "logit_bound")
    raw = [check_samples(side, f"head_logits.{name}") for side, name in zip(head_logits, Sides._fields)]
    corrected = [correct_prior_shift(side, gamma, train_forget_prior) for side in raw]
    retain, forget = (np.clip(side, -bound, bound) for side in corrected)
    clipped = sum(int((np.abs(side) > bound).sum()) for side in corrected)

    bracket = held_out_excess_risk_bound(retain, forget, gamma, bound, eta)
    delta = held_out_risk(retain, forget, gamma)
    kappa = float(np.logaddexp(0, -retain).mean())
    gap = concentration_gap(log_p_forget, log_p_retain)
    recommended = optimal_temperature(delta, gamma, gap, log_p_retain, penalty, t_max)
    critical = critical_temperature(delta, gamma, gap, tolerance)
    beta = 1 - 1 / recommended
    effective = 1 / (log_p_retain.size * float(np.square(softmax(-beta * log_p_retain)).sum()))

    outside = _outside(bracket, delta, gamma, gap, recommended, critical, tolerance, t_max, token_rule)
    remarks = []
    if gap <= 0:
        remarks.append("No forget record stands above the typical retained one: there is no spike to flatten.")
    if effective < FEW_EFFECTIVE:
        remarks.append(f"The retain error is likely understated: it rests on {effective:.0%} of the retain samples.")
    if clipped:
        remarks.append(f"{clipped} log-odds beyond {bound:g} nats were clipped; the excess risk is that of the clipped head.")
    return Diagnosis(
        gamma=gamma,
        n_retain=log_p_retain.size,
        n_forget=log_p_forget.size,
        held_out_retain=retain.size,
        held_out_forget=forget.size,
        delta_lower=bracket.lower,
        delta_estimate=delta,
        delta_upper=bracket.upper,
        kappa=kappa,
        concentration_gap=gap,
        log_p_bar=float(log_p_retain.mean()),
        log_p_std=float(log_p_retain.std()),
        retain_bias=retain_tempering_bias(log_p_retain, recommended),
        recommended_temperature=recommended,
        critical_temperature=critical,
        temperature=None if temperature is None else check_positive(temperature, "temperature"),
        retain_bias_in_use=None if temperature is None or temperature < 1 else retain_tempering_bias(log_p_retain, temperature),
        outside=tuple(outside),
        remarks=tuple(remarks),
    )


def diagnose_adapter(
    log_likelihoods: Sides,
    head_log_odds: Sides,
    *,
    temperature: float,
    guidance_scale: float = 1.0,
    forget_prior: float = 0.5,
) -> Diagnosis:
    """`diagnose` for a language model with an adapter: one number for each record, the head trained on both classes equally.

    Args:
        log_likelihoods: total log-likelihood of each record's answer under the base model, nats.
        head_log_odds: the head's log-odds at the last token of records of documents that it was not fitted on, nats: what it
            says of the whole record.
        temperature, guidance_scale, forget_prior: the adapter's settings.

    Raises:
        DataError: a set is empty or not finite.
    """
    found = diagnose(log_likelihoods, head_log_odds, gamma=forget_prior, temperature=temperature, token_rule=True)
    if guidance_scale == 1:
        return found
    return replace(found, outside=(*found.outside, f"the tilt is scaled by {guidance_scale:g}; the bounds are for 1"))


def _outside(
    bracket: Bracket,
    delta: float,
    gamma: float,
    gap: float,
    recommended: float,
    critical: float,
    tolerance: float,
    t_max: float,
    token_rule: bool,
) -> list[str]:
    """Reasons why the bounds do not cover the recommendation."""
    constant = -gamma * math.log(gamma) - (1 - gamma) * math.log1p(-gamma)
    reasons = []
    if delta >= constant:
        reasons.append(
            f"on records that it has not seen the head does no better (risk {delta:.2g} nats) than an answer that is "
            f"always the same ({constant:.2g})"
        )
    elif bracket.upper >= constant:
        reasons.append(
            f"so few held-out records allow the excess risk of a constant answer ({constant:.2g} nats): more are needed"
        )
    if math.isinf(critical):
        reasons.append(
            f"no temperature brings the bound of the relative forget error to the tolerance of {tolerance:g}: that takes an "
            f"excess risk below {gamma * (1 - gamma) * tolerance:.2g} nats"
        )
    elif recommended < critical:
        reasons.append(f"the bound of the forget error meets the tolerance from T = {critical:.2f} on only")
    if gap > 0 and recommended >= t_max > 1:
        reasons.append(f"the balance lies at or above the largest T considered, {t_max:g}")
    if token_rule:
        reasons.append(
            "T and head act on each token, and the product of tempered tokens is not the tempered record: "
            "only the bounds per prefix hold for it"
        )
    return reasons


def _number(value: float) -> str:
    return "none" if math.isinf(value) else f"{value:.2f}"
