"""From trials to rows: metrics of each trial, the choice of a setting, means over seeds with their intervals."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from tempertilt.bench.trial import EVALUATION, Trial
from tempertilt.errors import DataError
from tempertilt.metrics import truth_ratios
from tempertilt.metrics.result import exp_nll, harmonic_mean
from tempertilt.metrics.samples import Samples
from tempertilt.storage import write_text
from tempertilt.suites.tofu import evaluate, read_log

log = logging.getLogger("tempertilt")

METRICS_FILE = "metrics.json"
RESAMPLES = 300
UNBOUNDED = ("privleak",)
"""Figures that are no shares; the intervals of all others end at 0 and 1."""

UTILITY_PARTS = ("retain_Q_A_Prob", "ra_Q_A_Prob_normalised", "wf_Q_A_Prob_normalised", "retain_Truth_Ratio", "ra_Truth_Ratio",
                 "wf_Truth_Ratio")  # fmt: skip
"""What the likelihood-based utility is the harmonic mean of: the six of TOFU's nine parts that need no generated answer."""

HIGHER = {"forget_quality": True, "ks_distance": False, "forget_gap": False, "forget_Q_A_Prob": False, "forget_Q_A_ROUGE": False,
          "exact_memorization": False, "extraction_strength": False, "retain_Q_A_Prob": True, "retain_Q_A_ROUGE": True,
          "likelihood_utility": True, "model_utility": True, "mu_rouge": True, "privleak": None, "mia_min_k": None,
          "utility": True, "score": True}  # fmt: skip
"""The figures of a row, and whether higher is better."""


class Value(NamedTuple):
    """A figure of one trial, with the standard error that comes of the choice of questions (NaN where unknown)."""

    value: float
    error: float


class Figure(NamedTuple):
    """A figure over seeds.

    Attributes:
        mean: over seeds; of forget quality the geometric mean.
        low, high: 95 % interval that counts seeds and questions; for forget quality the lowest and highest seed.
        seed_low, seed_high: 95 % t interval over seeds alone, NaN for one seed.
        seeds: number of seeds.
        error: standard error behind `low` and `high`.
    """

    mean: float
    low: float
    high: float
    seed_low: float
    seed_high: float
    seeds: int
    error: float


@dataclass(frozen=True)
class Row:
    """A contender's line of the table.

    Attributes:
        label: its selected setting, as the grid names it.
        figures: by name, see `HIGHER`.
        costs: means over seeds: seconds by step, "unlearn_seconds" in all, "decoding", "peak_memory_mib",
            "trained_parameters", "artefact_bytes", "train_flops", "evaluation_seconds".
        selection: each setting's label, score on the validation part (None where every trial failed), and why it failed.
        failures: of the reported trials.
        machines: on which they ran.
    """

    name: str
    method: str
    label: str
    options: dict[str, Any]
    seeds: tuple[int, ...]
    figures: dict[str, Figure]
    costs: dict[str, float]
    selection: tuple[tuple[str, float | None, str], ...]
    failures: tuple[str, ...]
    machines: tuple[str, ...] = ()


def trial_metrics(trial: Trial, reference: Trial | None, target: Trial | None) -> dict[str, Value]:
    """The figures of a finished trial, against the reference and target trials of its part; kept in its folder."""
    path = trial.directory / METRICS_FILE
    key = [trial.key, reference and reference.key, target and target.key, list(HIGHER)]
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["key"] == key:
            return {name: Value(*value) for name, value in known["values"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    others = [None if t is None else read_log(t.directory / EVALUATION) for t in (reference, target)]
    results = read_log(trial.directory / EVALUATION)
    found, _ = evaluate(results, *others)
    values = {name: Value(r.value, _error(r.interval)) for name, r in found.items() if name in HIGHER}
    if "forget_quality" in found:
        assert others[0] is not None
        ours, theirs = (truth_ratios(of["forget"]) for of in (results, others[0]))
        distance = float(found["forget_quality"].details["statistic"])
        values["ks_distance"] = Value(distance, ks_error(ours, theirs))
        values["forget_gap"] = _gap(results["forget"], others[0]["forget"])
    if all(name in found for name in UTILITY_PARTS):
        parts = [found[name] for name in UTILITY_PARTS]
        values["likelihood_utility"] = _harmonic([Value(part.value, _error(part.interval)) for part in parts])
    if "likelihood_utility" in values or "model_utility" in values:
        values["utility"] = values.get("model_utility", values.get("likelihood_utility", Value(math.nan, math.nan)))
    write_text(path, json.dumps({"key": key, "values": values}) + "\n")
    return values


def ks_error(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float:
    """Standard error of the Kolmogorov-Smirnov distance: a bootstrap over questions, those of both sides drawn together."""
    pairs = np.array([(a, b) for a, b in zip(ours, theirs) if a is not None and b is not None], dtype=np.float64)
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(RESAMPLES):
        a, b = np.sort(pairs[rng.integers(0, len(pairs), len(pairs))], axis=0).T
        points = np.concatenate([a, b])
        gaps = np.searchsorted(a, points, side="right") - np.searchsorted(b, points, side="right")
        distances.append(float(np.abs(gaps).max()) / len(pairs))
    return float(np.std(distances))


def _gap(ours: Samples, theirs: Samples) -> Value:
    """|mean P(answer) - that of the reference|; its error is that of the mean of the questions' differences."""
    pairs = [(exp_nll(a.nll), exp_nll(b.nll)) for a, b in zip(ours, theirs)]
    changes = np.array([a - b for a, b in pairs if a is not None and b is not None])
    error = float(changes.std(ddof=1) / math.sqrt(len(changes))) if len(changes) > 1 else math.nan
    return Value(abs(float(changes.mean())), error)


def _error(interval: tuple[float, float] | None) -> float:
    """The standard error of a 95 % interval, as of a normal law."""
    return math.nan if interval is None else (interval[1] - interval[0]) / (2 * 1.96)


def _harmonic(parts: Sequence[Value]) -> Value:
    """Harmonic mean, and its standard error by linear propagation of independent ones."""
    mean = harmonic_mean([part.value for part in parts])
    if mean == 0:
        return Value(0.0, math.nan)
    errors = [0.0 if math.isnan(part.error) else part.error for part in parts]
    slopes = [mean**2 / (len(parts) * part.value**2) for part in parts]
    return Value(mean, math.sqrt(sum((slope * error) ** 2 for slope, error in zip(slopes, errors))))


def score(values: Mapping[str, Value], target: Mapping[str, Value], forgetting: str = "ks_distance") -> Value:
    """What settings are chosen by, and the leaderboard is sorted by: the harmonic mean of forgetting and keeping.

    Forgetting is the share of the way to the reference: 1 - D / D of the target, with D the Kolmogorov-Smirnov distance of the
    forget set's truth ratios from the reference's, or P(forget answers) where there is no reference; at least 0. So a method that
    does nothing scores 0. Keeping is the utility over the target's, at most 1.

    Args:
        forgetting: the figure that D is; with "forget_gap" the score tells apart settings of which none comes nearer by ratios.
    """
    if "utility" not in values or "utility" not in target:
        raise DataError("a score needs a utility: measure the splits retain, real_authors and world_facts")
    name = forgetting if forgetting in values else "forget_Q_A_Prob"
    left, kept = (_share(values[of], target[of]) for of in (name, "utility"))
    return _harmonic([Value(1 - left.value, left.error), kept])


def _share(value: Value, whole: Value) -> Value:
    """One figure over another, 0 to 1; the error is that of the first."""
    by = max(whole.value, 1e-12)
    return Value(min(1.0, max(0.0, value.value / by)), value.error / by)


def figure(name: str, values: Sequence[Value]) -> Figure:
    """One figure over seeds. The variance is that of the seeds' mean and that of the questions, added."""
    numbers = np.array([value.value for value in values], dtype=np.float64)
    if name == "forget_quality":
        logs = np.log(np.maximum(numbers, 1e-300))
        nan = math.nan
        return Figure(float(np.exp(logs.mean())), float(numbers.min()), float(numbers.max()), nan, nan, len(numbers), nan)
    mean, n = float(numbers.mean()), len(numbers)
    seeds = float(numbers.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    half = float(stats.t.ppf(0.975, n - 1)) * seeds if n > 1 else math.nan
    known = [value.error for value in values if not math.isnan(value.error)]
    questions = float(np.mean(np.square(known))) if known else 0.0
    error = math.sqrt(seeds**2 + questions)
    low, high = mean - 1.96 * error, mean + 1.96 * error
    if name not in UNBOUNDED:
        low, high = max(low, 0.0), min(high, 1.0)
    return Figure(mean, low, high, mean - half, mean + half, n, error)


def costs(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over trials of what they cost."""
    steps = {name for result in results for name in result["seconds"]} - {"unlearn", "load"}
    out = {f"{name}_seconds": _mean([result["seconds"].get(name, 0.0) for result in results]) for name in sorted(steps)}
    out["unlearn_seconds"] = _mean([sum(result["seconds"].get(name, 0.0) for name in steps) for result in results])
    out["evaluation_seconds"] = _mean([result["evaluation_seconds"]["total"] for result in results])
    ratios = [result["overhead"]["ratio"] for result in results]
    if None not in ratios:
        out["decoding"] = _mean(ratios)
    out["peak_memory_mib"] = _mean([result["peak_memory_mib"]["unlearning"] for result in results])
    for name in ("trained_parameters", "artefact_bytes", "train_flops"):
        out[name] = _mean([result[name] for result in results])
    return out


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


class Difference(NamedTuple):
    """A figure of one row less that of another, with a 95 % interval, and who does better: "first", "second" or "open"."""

    figure: str
    rival: str
    value: float
    low: float
    high: float
    better: str


COMPARED = ("score", "ks_distance", "forget_gap", "utility", "retain_Q_A_Prob")


def differences(row: Row, rivals: Sequence[Row]) -> list[Difference]:
    """A row against every other one. Errors add as of independent figures; on the same questions this is on the wide side."""
    out = []
    for rival in rivals:
        for name in COMPARED:
            if rival.name != row.name and name in row.figures and name in rival.figures:
                a, b = row.figures[name], rival.figures[name]
                value, half = a.mean - b.mean, 1.96 * math.hypot(a.error, b.error)
                good = value > 0 if HIGHER[name] else value < 0
                better = "open" if abs(value) <= half else ("first" if good else "second")
                out.append(Difference(name, rival.name, value, value - half, value + half, better))
    return out
