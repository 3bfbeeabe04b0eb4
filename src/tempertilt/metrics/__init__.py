"""Metrics: pure functions from samples to `MetricResult`."""

from tempertilt.metrics.aggregate import aggregate_score, memorisation_score, privacy_score, utility_score
from tempertilt.metrics.answers import (
    choice_accuracy,
    choice_changed,
    exact_match,
    gate_open,
    known,
    still_known,
    unchanged,
)
from tempertilt.metrics.divergence import ks_tokens, reference_kl, reference_same_top
from tempertilt.metrics.leakage import (
    Answer,
    greedy_leaks,
    greedy_misattribution,
    leak_at_k,
    leak_rate,
    misattribution,
    sampled_leaks,
)
from tempertilt.metrics.likelihood import normalised_probability, probability
from tempertilt.metrics.membership import attack_scores, auc, membership, privleak
from tempertilt.metrics.memorisation import exact_memorisation, extraction_strength, longest_common_run, longest_run
from tempertilt.metrics.result import MetricResult, clopper_pearson
from tempertilt.metrics.rouge import plain_rouge_f1, rouge, rouge_scores
from tempertilt.metrics.samples import Draw, Results, Sample
from tempertilt.metrics.sampling import (
    base_perplexity,
    best_of_n_rouge,
    ended,
    reference_perplexity,
    sampled_rouge,
    verbatim_leak,
)
from tempertilt.metrics.truth_ratio import forget_quality, ks_distance, ks_floor, truth_ratio, truth_ratios
from tempertilt.metrics.utility import model_utility, mu_rouge

__all__ = [
    "Answer",
    "Draw",
    "MetricResult",
    "Results",
    "Sample",
    "aggregate_score",
    "attack_scores",
    "auc",
    "base_perplexity",
    "best_of_n_rouge",
    "choice_accuracy",
    "choice_changed",
    "clopper_pearson",
    "ended",
    "exact_match",
    "exact_memorisation",
    "extraction_strength",
    "forget_quality",
    "gate_open",
    "greedy_leaks",
    "greedy_misattribution",
    "known",
    "ks_distance",
    "ks_floor",
    "ks_tokens",
    "leak_at_k",
    "leak_rate",
    "longest_common_run",
    "longest_run",
    "membership",
    "memorisation_score",
    "misattribution",
    "model_utility",
    "mu_rouge",
    "normalised_probability",
    "plain_rouge_f1",
    "privacy_score",
    "privleak",
    "probability",
    "reference_kl",
    "reference_perplexity",
    "reference_same_top",
    "rouge",
    "rouge_scores",
    "sampled_leaks",
    "sampled_rouge",
    "still_known",
    "truth_ratio",
    "truth_ratios",
    "unchanged",
    "utility_score",
    "verbatim_leak",
]
