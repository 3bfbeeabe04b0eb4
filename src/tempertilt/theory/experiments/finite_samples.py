"""Classifiers learned from n retain and n forget samples: what tempering does to what they leak, and what it costs.

The retain distribution is two Gaussians, the forget distribution a uniform spike in the gap between them. A smooth
classifier errs on the spike by the same little whatever the spike's width, so that plain guidance leaks in proportion to the
spike's height.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, log_expit
from scipy.stats import t as student

from tempertilt.errors import MissingExtraError
from tempertilt.theory.checks import Array, log
from tempertilt.theory.classifier import correct_prior_shift, excess_bce_risk
from tempertilt.theory.distributions import GaussianMixture, GridDistribution, mixture_density
from tempertilt.theory.experiments import style
from tempertilt.theory.experiments.result import Result, Table, show
from tempertilt.theory.guidance import (
    forget_error,
    forget_tempering_bias,
    guided_log_density,
    retain_error,
    retain_tempering_bias,
)

GAMMA = 0.2
WIDTHS = (1e-1, 1e-4)
SIZES = (50, 200, 800, 3200)
TEMPERATURES = (1.0, 1.5, 2.0, 3.0)
SEEDS = 20
CENTRES = np.linspace(-4, 4, 16)


class Problem(NamedTuple):
    """Retain and forget distributions on one grid, and the base's density `(k,)`."""

    retain: GridDistribution
    forget: GridDistribution
    p: Array

    @classmethod
    def make(cls, width: float) -> Problem:
        """Gaussians at -2 and 2 of scale 0.5; the spike is `[0.3, 0.3 + width]`."""
        edges = np.unique(np.concatenate([np.linspace(-6, 6, 241), np.linspace(0.3, 0.3 + width, 9)]).round(12))
        ends = edges[np.searchsorted(edges, [0.3 - 1e-9, 0.3 + width - 1e-9])]
        mixture = GaussianMixture(np.array([[-2.0], [2.0]]), np.array([0.5, 0.5]), np.array([0.5, 0.5]))
        retain, forget = mixture.on_grid(edges), GridDistribution.uniform(edges, float(ends[0]), float(ends[1]))
        return cls(retain, forget, mixture_density(retain.density, forget.density, GAMMA, retain.weights))

    @property
    def p_bar(self) -> float:
        """`exp(E_{p_r} log p)`."""
        r, w = self.retain.density, self.retain.weights
        return math.exp(float((w * r)[r > 0] @ log(self.p[r > 0])))

    def floor(self, temperature: float) -> float:
        """`B_f(T) / p_bar`."""
        r, f = self.retain, self.forget
        return forget_tempering_bias(r.density, f.density, GAMMA, temperature, r.weights) / self.p_bar


def logistic(x: Array, y: Array, _seed: int) -> Callable[[Array], Array]:
    """Logistic regression on 16 Gaussian bumps of scale 1/2; log-odds as a function of points."""
    from sklearn.linear_model import LogisticRegression

    def bumps(at: Array) -> Array:
        return np.asarray(np.exp(-2 * (at[:, None] - CENTRES) ** 2))

    model = LogisticRegression(C=10.0, max_iter=500).fit(bumps(x), y)
    return lambda at: np.asarray(model.decision_function(bumps(at)))


def mlp(x: Array, y: Array, seed: int) -> Callable[[Array], Array]:
    """Two hidden layers of 24 ReLUs, L-BFGS; log-odds as a function of points."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier((24, 24), solver="lbfgs", alpha=1e-2, max_iter=150, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stops after max_iter on purpose
        model.fit(x[:, None] / 3, y)

    def log_odds(at: Array) -> Array:
        chances = np.clip(model.predict_proba(at[:, None] / 3), 1e-12, 1.0)
        return np.asarray(np.log(chances[:, 1]) - np.log(chances[:, 0]))

    return log_odds


MODELS: dict[str, Callable[[Array, Array, int], Callable[[Array], Array]]] = {"logistic": logistic, "MLP": mlp}


class Errors(NamedTuple):
    """Of one learned classifier at one T: F_T / p_bar, R_T, B_r as estimated from its retain samples, and its excess risk."""

    forget: float
    retain: float
    bias: float
    delta: float


def measure(problem: Problem, model: str, n: int, seed: int, temperatures: Sequence[float]) -> list[Errors]:
    """Learn from n samples of each class, correct the prior, guide, and compare with the truth on the grid."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([problem.retain.sample(n, rng), problem.forget.sample(n, rng)])
    learned = MODELS[model](x, np.repeat([1, 0], n), seed)
    odds = correct_prior_shift(learned(problem.retain.centers), GAMMA, 0.5)
    r, f, w = problem.retain.density, problem.forget.density, problem.retain.weights
    delta = excess_bce_risk(expit(odds), r, f, GAMMA, w, forget_prob=expit(-odds))
    log_p = log(problem.p)
    cells = np.searchsorted(problem.retain.edges, x[:n], side="right") - 1
    out = []
    for t in temperatures:
        hat = np.exp(guided_log_density(log_p, log_expit(odds), t, log(w)).log_density)
        bias = retain_tempering_bias(log_p[cells], t)
        out.append(Errors(forget_error(hat, r, f, w) / problem.p_bar, retain_error(r, hat, w), bias, delta))
    return out


def run(seed: int = 0) -> Result:
    """Seeds `seed .. seed + 19`; about half a minute."""
    return run_grid(seed, SEEDS, SIZES, WIDTHS, TEMPERATURES)


def run_grid(seed: int, seeds: int, sizes: Sequence[int], widths: Sequence[float], temperatures: Sequence[float]) -> Result:
    """The experiment on a grid of numbers of samples, widths and temperatures.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "theory", "learning the classifiers of this experiment") from error
    problems = {width: Problem.make(width) for width in widths}
    runs = {
        (model, width, n): np.array([measure(problems[width], model, n, seed + i, temperatures) for i in range(seeds)])
        for model in MODELS
        for width in widths
        for n in sizes
    }
    rows: list[list[Any]] = []
    for (model, width, n), values in runs.items():
        for j, t in enumerate(temperatures):
            row: list[Any] = [model, width, n, t, seeds]
            for k in range(4):
                row += interval(values[:, j, k], of_logs=k == 0)
            rows.append(row)
    names = ("F / p_bar", "R", "B_r from samples", "delta")
    columns = ("model", "eps", "n", "T", "seeds", *(f"{name}{of}" for name in names for of in ("", " low", " high")))
    sharp, most = min(widths), max(sizes)
    chosen = [row for row in rows if row[1] == sharp and row[2] == most]
    summary = Table(
        ("model", "n", "T", "F / p_bar", "95 %", "R (nats)", "95 %", "B_r from samples", "95 %"),
        [[row[0], row[2], f"{row[3]:g}", *(cell for k in (5, 8, 11) for cell in (row[k], _range(row, k)))] for row in chosen],
    )
    settings = {"seed": seed, "seeds": seeds, "gamma": GAMMA, "interval": "95 %, Student t; of logarithms for F / p_bar"}
    return Result(
        "finite-samples",
        "Learned classifiers: forget error falls with T, retain error rises",
        settings,
        _findings(runs, sharp, temperatures, seeds, problems[sharp].floor(temperatures[-1])),
        summary,
        Table(columns, rows),
        lambda: _draw(rows, widths, temperatures, seeds),
    )


def interval(values: Array, *, of_logs: bool = False) -> list[float]:
    """Mean over seeds with a 95 % interval of Student's t; `of_logs`: the geometric mean, the interval that of the logarithms."""
    x = np.log(values) if of_logs else values
    half = float(student.ppf(0.975, len(x) - 1)) * x.std(ddof=1) / math.sqrt(len(x))
    ends = [float(x.mean() + by) for by in (0.0, -half, half)]
    return [math.exp(end) for end in ends] if of_logs else ends


def _range(row: list[Any], at: int) -> str:
    return f"{show(row[at + 1])} to {show(row[at + 2])}"


def _findings(
    runs: dict[tuple[str, float, int], Array], sharp: float, temperatures: Sequence[float], seeds: int, floor: float
) -> list[str]:
    last = f"{temperatures[-1]:g}"
    found = [
        f"At eps = {sharp:g}, {seeds} seeds; F / p_bar of a perfect classifier, its forget bias, is {show(floor)} at T = {last}."
    ]
    for model in MODELS:
        sizes = [n for name, width, n in runs if name == model and width == sharp]
        every, ends, factors, biases, costs = [], [], [], [], []
        for n in sizes:
            forget, retain, bias = np.moveaxis(runs[model, sharp, n][:, :, :3], -1, 0)
            every.append(_count(np.diff(forget, axis=1) < 0))
            ends.append(_count(forget[:, -1:] < forget[:, :1]))
            biases.append(_count(np.diff(bias, axis=1) > 0))
            costs.append(_count(retain[:, -1:] > retain[:, :1]))
            middle, low, high = map(show, interval(forget[:, 0] / forget[:, -1], of_logs=True))
            factors.append(f"{middle} ({low} to {high})")
        found.append(
            f"{model}, n = {', '.join(map(str, sizes))}: forget error falls from T = 1 to {last} in {_list(ends)} seeds (at each "
            f"step of T in {_list(every)}), by a factor of {', '.join(factors)}; the retain bias estimated from samples rises "
            f"at every step in {_list(biases)}, the retain error from T = 1 to {last} in {_list(costs)}."
        )
    return found


def _count(holds: Any) -> int:
    """In how many rows all of `holds (seeds, steps)` is true."""
    return int(holds.all(1).sum())


def _list(counts: list[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else ", ".join(map(str, counts))


def _draw(rows: list[list[Any]], widths: Sequence[float], temperatures: Sequence[float], seeds: int) -> Any:
    figure, axes = style.panels(2, len(widths) + 1, (4 * (len(widths) + 1), 7.2), sharex=True)
    for i, model in enumerate(MODELS):
        views = [(width, 5, f"{model}: forget error, ε = {width:g}", r"$F_T\,/\,\bar{p}$") for width in widths]
        views.append((min(widths), 8, f"{model}: retain error, ε = {min(widths):g}", "$R_T$ (nats)"))
        for axis, (width, at, title, name) in zip(axes[i], views):
            for j, t in enumerate(temperatures):
                of = [row for row in rows if row[0] == model and row[1] == width and row[3] == t]
                style.line(axis, [row[2] for row in of], [row[at] for row in of], (0, 1, 2, 4)[j % 4], f"T = {t:g}")
                low, high = [row[at + 1] for row in of], [row[at + 2] for row in of]
                colour = axis.lines[-1].get_color()
                axis.fill_between([row[2] for row in of], low, high, color=colour, alpha=0.2, linewidth=0)
            axis.set_xscale("log")
            axis.set_yscale("log")
            sizes = sorted({row[2] for row in rows})
            axis.set_xticks(sizes, [str(n) for n in sizes])
            axis.minorticks_off()
            style.label(axis, title, "samples of each class, n" if i == len(MODELS) - 1 else "", name)
    for column in axes.T:  # one scale for a column, so that the models compare
        low, high = min(a.get_ylim()[0] for a in column), max(a.get_ylim()[1] for a in column)
        for axis in column:
            axis.set_ylim(low, high)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    title = f"mean and 95 % interval over {seeds} seeds"
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), title=title)
    return figure
