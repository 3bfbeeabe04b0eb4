"""How much of a text is given back word for word.

Exact memorisation (Tirumala et al., arXiv 2205.10770), extraction strength (Carlini et al., arXiv 2012.07805), common runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tempertilt.errors import DataError
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


def longest_common_run(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest run of tokens, one after another, that both sequences hold."""
    tokens = np.asarray(second, dtype=np.int64)
    lengths = np.zeros(len(tokens) + 1, dtype=np.int64)
    longest = 0
    for token in first:
        lengths[1:] = np.where(tokens == token, lengths[:-1] + 1, 0)
        longest = max(longest, int(lengths.max()))
    return longest


def longest_run(texts: Sequence[Sequence[int]], originals: Sequence[Sequence[int]], *, name: str = "longest_run") -> MetricResult:
    """The longest run of its original's tokens in any of some texts, in tokens; `details` has mean and median.

    Args:
        texts: token ids, such as continuations.
        originals: for each text the token ids of its original.
    """
    if not texts or len(texts) != len(originals):
        raise DataError(f"{name}: {len(texts)} texts and {len(originals)} originals; must be as many, and at least one")
    runs = [longest_common_run(text, original) for text, original in zip(texts, originals)]
    return MetricResult(
        name=name,
        value=float(max(runs)),
        n=len(runs),
        n_missing=0,
        higher_is_better=False,
        interval=None,
        per_sample=tuple(map(float, runs)),
        protocol="longest run of tokens that a text has in common with its original, over all texts",
        details={"mean": float(np.mean(runs)), "median": float(np.median(runs))},
    )
