"""Memorisation: exact memorisation (Tirumala et al., arXiv 2205.10770) and extraction strength (Carlini et al., 2012.07805)."""

from __future__ import annotations

from tempertilt.metrics.result import MetricResult, mean_result
from tempertilt.metrics.samples import Samples


def exact_memorisation(samples: Samples, *, name: str = "exact_memorization") -> MetricResult:
    """Mean share of answer tokens that are the most likely one given the true tokens before them."""
    values = [sum(hits) / len(hits) if (hits := s.scored_hits) else s.scores.get("exact_memorization") for s in samples]
    protocol = "mean share of answer tokens, end of sequence left out, that are the argmax given the true prefix"
    return mean_result(name, values, higher_is_better=False, protocol=protocol)


def extraction_strength(samples: Samples, *, name: str = "extraction_strength") -> MetricResult:
    """Mean of 1 - k/m: k of an answer's m tokens must be given before greedy decoding gives all the rest. 0 if none."""
    values = [_strength(hits) if (hits := s.scored_hits) else s.scores.get("extraction_strength") for s in samples]
    protocol = "mean of 1 - k/m, k = the shortest prefix of the answer after which greedy decoding gives the rest; 0 if none"
    return mean_result(name, values, higher_is_better=False, protocol=protocol)


def _strength(hits: tuple[bool, ...]) -> float:
    suffix = next((i for i, hit in enumerate(reversed(hits)) if not hit), len(hits))
    return suffix / len(hits)
