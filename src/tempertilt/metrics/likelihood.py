"""Probability of the true answer (TOFU, Maini et al., arXiv 2401.06121)."""

from __future__ import annotations

import math

from tempertilt.metrics.result import MetricResult, exp_nll, mean_result
from tempertilt.metrics.samples import Sample, Samples


def probability(
    samples: Samples, *, of: str = "answer", name: str = "probability", higher_is_better: bool | None = None
) -> MetricResult:
    """Mean over samples of P = exp(-nll), every answer token counted, the end of the sequence included.

    Args:
        of: "answer" or "paraphrase"; "perturbed" takes the mean over a sample's wrong answers.
    """
    values = [_probability(sample, of) for sample in samples]
    protocol = f"mean of exp(mean log-probability) of the {of} answer" if of != "answer" else (
        "mean of exp(mean log-probability) of the answer's tokens, end of sequence included"
    )  # fmt: skip
    return mean_result(name, values, higher_is_better=higher_is_better, protocol=protocol)


def _probability(sample: Sample, of: str) -> float | None:
    if of == "perturbed":
        return sum(math.exp(-nll) for nll in sample.perturbed_nll) / len(sample.perturbed_nll) if sample.perturbed_nll else None
    return exp_nll(sample.paraphrase_nll if of == "paraphrase" else sample.nll)


def normalised_probability(samples: Samples, *, name: str = "normalised_probability") -> MetricResult:
    """Mean of P / (P + the sum of P over the wrong answers + 1e-10): the answer among given options."""
    values = [option_share(sample) for sample in samples]
    protocol = "mean of P / (P + sum of P over the wrong answers + 1e-10), P length-normalised"
    return mean_result(name, values, higher_is_better=True, protocol=protocol)


def option_share(sample: Sample) -> float | None:
    """The share of the true answer among a sample's options, or None."""
    right = exp_nll(sample.nll)
    if right is None or not sample.perturbed_nll:
        return None
    return right / (right + sum(math.exp(-nll) for nll in sample.perturbed_nll) + 1e-10)
