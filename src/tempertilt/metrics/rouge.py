"""ROUGE of generations against the true answer (Lin, 2004), by the package rouge-score with its stemmer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tempertilt.errors import ConfigError
from tempertilt.metrics.result import MetricResult, mean_result
from tempertilt.metrics.samples import Samples

KINDS = ("rouge1_recall", "rougeL_recall", "rougeL_f1")


@lru_cache(maxsize=2)
def _scorer(use_stemmer: bool = True) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=use_stemmer)


def rouge_scores(truth: str, generation: str) -> dict[str, float]:
    """ROUGE-1 recall, ROUGE-L recall and ROUGE-L F1 of one generation, all in [0, 1]."""
    scores = _scorer().score(truth, generation)
    return {
        "rouge1_recall": float(scores["rouge1"].recall),
        "rougeL_recall": float(scores["rougeL"].recall),
        "rougeL_f1": float(scores["rougeL"].fmeasure),
    }


def rouge(
    samples: Samples, kind: str = "rougeL_recall", *, name: str = "rouge", higher_is_better: bool | None = None
) -> MetricResult:
    """Mean ROUGE of the greedy answers; `kind` is rouge1_recall, rougeL_recall (TOFU) or rougeL_f1."""
    if kind not in KINDS:
        raise ConfigError(f"kind is {kind!r}; must be one of {', '.join(KINDS)}")
    values = [getattr(sample, kind) for sample in samples]
    protocol = f"mean {kind} of the greedy answer, stemmed (rouge-score)"
    return mean_result(name, values, higher_is_better=higher_is_better, protocol=protocol)


def plain_rouge_f1(
    samples: Samples, *, ends: tuple[str, ...] = (), name: str = "rouge", higher_is_better: bool | None = None
) -> MetricResult:
    """Mean ROUGE-L F1 of the greedy answers without stemming, as in MUSE (Shi et al., arXiv 2407.06460).

    Args:
        ends: texts before the first of which an answer is cut off.
    """
    values = [
        None if s.generation is None else float(_scorer(False).score(s.answer, _before(s.generation, ends))["rougeL"].fmeasure)
        for s in samples
    ]
    protocol = "mean ROUGE-L F1 of the greedy answer, not stemmed (rouge-score)"
    return mean_result(name, values, higher_is_better=higher_is_better, protocol=protocol)


def _before(text: str, ends: tuple[str, ...]) -> str:
    for end in ends:
        text = text.split(end)[0]
    return text
