"""Temper-then-tilt as mathematics: definitions, bounds, their constants and the choice of T, on arrays.

Pure functions in NumPy float64, natural logarithms, risks in nats. Our derivation; the method is that of Block, Mohri,
Mokhtari, Shakkottai (arXiv 2602.10217), whose theorems may differ in constants. Sections, equations and numbers of theorems
are those of docs/theory.md.
"""

from __future__ import annotations

from tempertilt.theory.bounds import (
    bounded_logit_forget_error_lower_bound,
    log_guided_normalizer_lower_bound,
    minimax_forget_error_lower_bound,
    normalizer_deviation_bound,
    plain_forget_error_bound,
    plain_retain_error_bound,
    retain_log_ratio_bound,
    sup_norm_forget_error_bound,
    tempered_forget_error_bound,
    tempered_retain_error_bound,
)
from tempertilt.theory.classifier import (
    binary_kl,
    classifier_error_bounds,
    correct_prior_shift,
    excess_bce_risk,
    excess_risk_parts,
    prior_logit_shift,
    prior_shift_risk_factor,
    retain_log_ratio,
    retain_posterior,
    uncorrected_prior_bias_bound,
)
from tempertilt.theory.composition import composition_retain_error_bound, parts_overlap
from tempertilt.theory.constants import TemperingConstants
from tempertilt.theory.diagnose import Diagnosis, Sides, diagnose, diagnose_adapter
from tempertilt.theory.distributions import FiniteDistribution, GaussianMixture, GridDistribution, mixture_density
from tempertilt.theory.finite_samples import (
    excess_risk_bound_fast,
    excess_risk_bound_finite_class,
    excess_risk_bound_linear,
    excess_risk_bound_lipschitz,
    excess_risk_bound_pseudodim,
    held_out_excess_risk_bound,
    held_out_risk,
    sampling_scale,
)
from tempertilt.theory.guidance import (
    forget_error,
    forget_tempering_bias,
    guided_log_density,
    retain_error,
    retain_tempering_bias,
)
from tempertilt.theory.sequences import (
    guided_token_logits,
    local_forget_error_bound,
    memorized_token_probability,
    memorized_token_required_ratio,
    token_retain_error_bound,
)
from tempertilt.theory.spike import (
    low_density_example,
    spike_example,
    spike_forget_error,
    spike_forget_error_bounds,
    spike_retain_error,
)
from tempertilt.theory.temperature import concentration_gap, critical_temperature, optimal_temperature, temperature_objective

__all__ = [
    "Diagnosis",
    "FiniteDistribution",
    "GaussianMixture",
    "GridDistribution",
    "Sides",
    "TemperingConstants",
    "binary_kl",
    "bounded_logit_forget_error_lower_bound",
    "classifier_error_bounds",
    "composition_retain_error_bound",
    "concentration_gap",
    "correct_prior_shift",
    "critical_temperature",
    "diagnose",
    "diagnose_adapter",
    "excess_bce_risk",
    "excess_risk_bound_fast",
    "excess_risk_bound_finite_class",
    "excess_risk_bound_linear",
    "excess_risk_bound_lipschitz",
    "excess_risk_bound_pseudodim",
    "excess_risk_parts",
    "forget_error",
    "forget_tempering_bias",
    "guided_log_density",
    "guided_token_logits",
    "held_out_excess_risk_bound",
    "held_out_risk",
    "local_forget_error_bound",
    "log_guided_normalizer_lower_bound",
    "low_density_example",
    "memorized_token_probability",
    "memorized_token_required_ratio",
    "minimax_forget_error_lower_bound",
    "mixture_density",
    "normalizer_deviation_bound",
    "optimal_temperature",
    "parts_overlap",
    "plain_forget_error_bound",
    "plain_retain_error_bound",
    "prior_logit_shift",
    "prior_shift_risk_factor",
    "retain_error",
    "retain_log_ratio",
    "retain_log_ratio_bound",
    "retain_posterior",
    "retain_tempering_bias",
    "sampling_scale",
    "spike_example",
    "spike_forget_error",
    "spike_forget_error_bounds",
    "spike_retain_error",
    "sup_norm_forget_error_bound",
    "temperature_objective",
    "tempered_forget_error_bound",
    "tempered_retain_error_bound",
    "token_retain_error_bound",
    "uncorrected_prior_bias_bound",
]
