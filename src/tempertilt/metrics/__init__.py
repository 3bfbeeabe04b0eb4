"""Metrics: pure functions from samples to `MetricResult`."""

from tempertilt.metrics.aggregate import aggregate_score, memorisation_score, privacy_score, utility_score
from tempertilt.metrics.likelihood import normalised_probability, probability
from tempertilt.metrics.membership import attack_scores, auc, membership, privleak
from tempertilt.metrics.memorisation import exact_memorisation, extraction_strength
from tempertilt.metrics.result import MetricResult
from tempertilt.metrics.rouge import rouge, rouge_scores
from tempertilt.metrics.samples import Draw, Results, Sample
from tempertilt.metrics.sampling import base_perplexity, best_of_n_rouge, sampled_rouge, verbatim_leak
from tempertilt.metrics.truth_ratio import forget_quality, ks_floor, truth_ratio, truth_ratios
from tempertilt.metrics.utility import model_utility, mu_rouge

__all__ = [
    "Draw",
    "MetricResult",
    "Results",
    "Sample",
    "aggregate_score",
    "attack_scores",
    "auc",
    "base_perplexity",
    "best_of_n_rouge",
    "exact_memorisation",
    "extraction_strength",
    "forget_quality",
    "ks_floor",
    "membership",
    "memorisation_score",
    "model_utility",
    "mu_rouge",
    "normalised_probability",
    "privacy_score",
    "privleak",
    "probability",
    "rouge",
    "rouge_scores",
    "sampled_rouge",
    "truth_ratio",
    "truth_ratios",
    "utility_score",
    "verbatim_leak",
]
