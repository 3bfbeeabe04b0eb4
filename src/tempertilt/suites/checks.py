"""Whether a sample that was read from a file can be computed with: each value of its type and within its range."""

from __future__ import annotations

import math
from dataclasses import replace
from types import NoneType
from typing import Any

from tempertilt.metrics.samples import Draw, Sample

ROUNDING = 1e-3  # what a likelihood may be off by

RANGES: dict[str, tuple[float, float]] = {
    "nll": (-ROUNDING, math.inf),
    "paraphrase_nll": (-ROUNDING, math.inf),
    "perturbed_nll": (-700.0, math.inf),  # also holds logarithms of truth ratios, whose exponential must be a number
    "log_probs": (-math.inf, ROUNDING),
    "standardised": (-math.inf, math.inf),
    "rouge1_recall": (0.0, 1.0 + ROUNDING),
    "rougeL_recall": (0.0, 1.0 + ROUNDING),
    "rougeL_f1": (0.0, 1.0 + ROUNDING),
    "base_perplexity": (1.0 - ROUNDING, math.inf),
    "reference_perplexity": (1.0 - ROUNDING, math.inf),
    "reference_kl": (-ROUNDING, math.inf),
    "gate": (0.0, 1.0),
}
LISTS = ("perturbed_nll", "log_probs", "standardised", "reference_kl")
FLAGS = ("hits", "reference_same_top")
TEXTS = ("question", "answer", "group", "generation", "text")


def check_sample(sample: Sample) -> Sample:
    """The sample; what is not a finite number in it counts as missing.

    Raises:
        ValueError: a value has another type than it must have, or lies outside its range.
    """
    if isinstance(sample.index, bool) or not isinstance(sample.index, int) or sample.index < 0:
        raise ValueError(f"index is {sample.index!r}; must be a whole number >= 0")
    if not isinstance(sample.ends, bool) or not isinstance(sample.generation_ends, (bool, NoneType)):
        raise ValueError("ends and generation_ends must be true or false")
    for name in FLAGS:
        flags = getattr(sample, name)
        if not isinstance(flags, tuple) or not all(isinstance(flag, bool) for flag in flags):
            raise ValueError(f"{name} is {flags!r}; must be a list of true and false")
    values: dict[str, Any] = {name: _numbers(name, getattr(sample, name)) for name in RANGES}
    scores = {name: _number(name, value, -math.inf, math.inf) for name, value in sample.scores.items()}
    values["scores"] = {name: value for name, value in scores.items() if value is not None}
    values["draws"] = tuple(map(_draw, sample.draws))
    _check_texts(sample)
    return replace(sample, **values)


def _draw(draw: Draw) -> Draw:
    _check_texts(draw)
    recall = _numbers("rougeL_recall", draw.rougeL_recall)
    if recall is None:
        raise ValueError("rougeL_recall of a sampled answer is missing; must be a number")
    return replace(draw, rougeL_recall=recall, base_perplexity=_numbers("base_perplexity", draw.base_perplexity))


def _numbers(name: str, value: Any) -> Any:
    """A number or a tuple of them, checked; None or an empty tuple if it is missing."""
    if name not in LISTS:
        return _number(name, value, *RANGES[name])
    if not isinstance(value, tuple):
        raise ValueError(f"{name} is {value!r}; must be a list of numbers")
    checked = tuple(_number(name, part, *RANGES[name]) for part in value)
    return () if None in checked else checked


def _number(name: str, value: Any, low: float, high: float) -> float | None:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}; must be a number")
    if not max(low, -1e300) <= value <= min(high, 1e300):
        raise ValueError(f"{name} is {value!r}; must be between {low:g} and {high:g}")
    return float(value)


def _check_texts(item: Sample | Draw) -> None:
    for name in TEXTS:
        value = getattr(item, name, "")
        if not isinstance(value, str) and not (name == "generation" and value is None):
            raise ValueError(f"{name} is {value!r}; must be a text")
