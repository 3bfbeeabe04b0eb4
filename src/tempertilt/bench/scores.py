"""From trials to rows: metrics of each trial, the choice of a setting, means over seeds with their intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.stats import hmean

from tempertilt.bench.resampling import COLUMNS, Array, Columns, Value, columns_of, resampled, value_of
from tempertilt.bench.trial import EVALUATION, RESULT, Trial
from tempertilt.errors import DataError
from tempertilt.storage import read_stored, write_text
from tempertilt.suites.tofu import evaluate, read_log

METRICS_FILE = "metrics.json"
UNBOUNDED = ("privleak", "reference_kl", "forget_reference_perplexity", "forget_perplexity")
"""Figures that are no shares; the intervals of all others end at 0 and 1."""

HIGHER = {"forget_quality": True, "ks_distance": False, "forget_gap": False, "forget_Q_A_Prob": False, "forget_Q_A_ROUGE": False,
          "exact_memorization": False, "extraction_strength": False, "retain_Q_A_Prob": True, "retain_Q_A_ROUGE": True,
          "likelihood_utility": True, "model_utility": True, "mu_rouge": True, "privleak": None, "mia_min_k": None,
          "utility": True, "score": True, "reference_kl": False, "reference_same_top": True,
          "forget_reference_perplexity": False, "forget_perplexity": False, "forget_ended": True, "forget_leaked": False,
          "forget_leak_rate": False, "forget_leak_at_n": False, "misattribution": False}  # fmt: skip
"""The figures of a row, and whether higher is better."""


class Figure(NamedTuple):
    """A figure over seeds.

    Attributes:
        mean: over seeds; of forget quality the geometric mean.
        low, high: 95 % interval that counts seeds and questions; for forget quality the lowest and highest seed.
        seed_low, seed_high: 95 % t interval over seeds alone, NaN for one seed.
        seeds: number of seeds.
        error: standard error behind `low` and `high`.
        seed_error: the part of it that comes of the seeds.
        draws: `(RESAMPLES,)`, the mean over seeds on resampled questions, None where it is not known.
    """

    mean: float
    low: float
    high: float
    seed_low: float
    seed_high: float
    seeds: int
    error: float
    seed_error: float = 0.0
    draws: Array | None = None


@dataclass(frozen=True)
class Row:
    """A contender's line of the table.

    Attributes:
        label: its selected setting, as the grid names it.
        figures: by name, see `HIGHER`.
        costs: means over seeds: seconds by step, "unlearn_seconds" in all, "decoding", "peak_memory_mib",
            "trained_parameters", "artefact_bytes", "train_flops", "evaluation_seconds".
        selection: each setting's label, score on the validation part (None where a trial has no result), and why.
        failures: why reported trials have no result.
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
    values, columns = _kept(trial, reference, target)
    theirs = None if reference is None else columns if reference.key == trial.key else _kept(reference, reference, target)[1]
    return values | resampled(columns, theirs)


def _kept(trial: Trial, reference: Trial | None, target: Trial | None) -> tuple[dict[str, Value], Columns]:
    """The figures and the values by question, from the trial's folder, where they are written if they are not there.

    A trial whose samples are gone, as in a clone, keeps the figures that there were when it was measured.

    Raises:
        DataError: they are not there, and neither are the samples of the three trials.
    """
    path = trial.directory / METRICS_FILE
    needed = [t for t in (trial, reference, target) if t is not None]
    lost = [t for t in needed if not t.has_samples]
    key = [trial.key, reference and reference.key, target and target.key, list(HIGHER), list(COLUMNS)]
    try:
        known = json.loads(read_stored(path))
        if known["key"] == key or (lost and known["key"][:3] == key[:3]):
            return {name: Value(*value) for name, value in known["values"].items()}, known["questions"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if lost:
        raise DataError(
            f"{str(path)!r} does not hold the figures of this trial, and the samples to make them from are gone: "
            f"{str(lost[0].directory / EVALUATION)!r}; remove {str(lost[0].directory / RESULT)!r} to have them measured again"
        )
    others = [None if t is None else read_log(t.directory / EVALUATION) for t in (reference, target)]
    found, _ = evaluate(read_log(trial.directory / EVALUATION), *others)
    values = {name: Value(r.value, _error(r.interval)) for name, r in found.items() if name in HIGHER}
    columns = columns_of(found)
    write_text(path, json.dumps({"key": key, "values": {n: of[:2] for n, of in values.items()}, "questions": columns}) + "\n")
    return values, columns


def _error(interval: tuple[float, float] | None) -> float:
    """The standard error of a 95 % interval, as of a normal distribution."""
    return math.nan if interval is None else (interval[1] - interval[0]) / (2 * 1.96)


def score(values: Mapping[str, Value], target: Mapping[str, Value], forgetting: str = "ks_distance") -> Value:
    """What settings are chosen by, and the leaderboard is sorted by: the harmonic mean of forgetting and keeping.

    Forgetting is the share of the way to the reference: 1 - D / D of the target, with D the Kolmogorov-Smirnov distance of the
    forget set's truth ratios from the reference's, or P(forget answers) where there is no reference; at least 0. So a method that
    does nothing scores 0. Keeping is the utility over the target's, at most 1.

    Args:
        values, target: as `trial_metrics` gives them; each draw is scored against the target's on the same questions.
        forgetting: the figure that D is; with "forget_gap" the score tells apart settings of which none comes nearer by ratios.
    """
    if "utility" not in values or "utility" not in target:
        raise DataError("a score needs a utility: measure the splits retain, real_authors and world_facts")
    name = forgetting if forgetting in values else "forget_Q_A_Prob"
    left, kept = (_share(values[of], target[of]) for of in (name, "utility"))
    return value_of(hmean([1.0 - left, kept]))


def _share(value: Value, whole: Value) -> Array:
    """One figure over another, 0 to 1, on all questions and on each draw."""
    return np.clip(_all(value) / np.maximum(_all(whole), 1e-12), 0.0, 1.0)


def _all(of: Value) -> Array:
    assert of.draws is not None, "only figures that `resampled` gives are scored and compared"
    return np.concatenate([[of.value], of.draws])


def figure(name: str, values: Sequence[Value]) -> Figure:
    """One figure over seeds. The variance is that of the seeds' mean and that of the questions, added.

    That of the questions is of the seeds' mean on resampled questions, or the mean of the seeds' own where draws are not known.
    """
    numbers = np.array([value.value for value in values], dtype=np.float64)
    if name == "forget_quality":
        logs = np.log(np.maximum(numbers, 1e-300))
        nan = math.nan
        return Figure(float(np.exp(logs.mean())), float(numbers.min()), float(numbers.max()), nan, nan, len(numbers), nan)
    mean, n = float(numbers.mean()), len(numbers)
    seeds = float(numbers.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    half = float(stats.t.ppf(0.975, n - 1)) * seeds if n > 1 else math.nan
    known = [value.error for value in values if not math.isnan(value.error)]
    all_draws = [value.draws for value in values if value.draws is not None]
    if len(all_draws) == n:
        draws = np.mean(all_draws, axis=0)
        questions = float(draws.var())
    else:
        draws, questions = None, float(np.mean(np.square(known))) if known else 0.0
    error = math.sqrt(seeds**2 + questions)
    low, high = mean - 1.96 * error, mean + 1.96 * error
    if name not in UNBOUNDED:
        low, high = max(low, 0.0), min(high, 1.0)
    return Figure(mean, low, high, mean - half, mean + half, n, error, seeds, draws)


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
    """A row against every other one: variances over seeds added to that of the difference on the same resampled questions."""
    out = []
    for rival in rivals:
        for name in COMPARED:
            if rival.name != row.name and name in row.figures and name in rival.figures:
                a, b = row.figures[name], rival.figures[name]
                assert a.draws is not None and b.draws is not None
                half = 1.96 * math.hypot(float((a.draws - b.draws).std()), a.seed_error, b.seed_error)
                value = a.mean - b.mean
                good = value > 0 if HIGHER[name] else value < 0
                better = "open" if abs(value) <= half else ("first" if good else "second")
                out.append(Difference(name, rival.name, value, value - half, value + half, better))
    return out
