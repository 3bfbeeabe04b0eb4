"""What tempering saves and what it costs as T grows, with the bounds and the predicted best T (Section 8)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from tempertilt.theory.bounds import tempered_forget_error_bound, tempered_retain_error_bound
from tempertilt.theory.checks import Array, log
from tempertilt.theory.classifier import excess_bce_risk, retain_log_ratio
from tempertilt.theory.constants import TemperingConstants
from tempertilt.theory.distributions import GaussianMixture, GridDistribution, mixture_density
from tempertilt.theory.experiments import style
from tempertilt.theory.experiments.result import Result, Table
from tempertilt.theory.guidance import forget_error, guided_log_density, retain_error
from tempertilt.theory.temperature import critical_temperature, optimal_temperature

GAMMA, EPS, SHOWN_DELTA = 0.1, 1e-3, 1e-3
DELTAS = (1e-4, 1e-3, 1e-2)
TEMPERATURES = tuple(np.exp(np.linspace(0, math.log(6), 41)).tolist())
T_MAX, SAMPLES, TOLERANCE = 6.0, 5000, 1.0


class Problem(NamedTuple):
    """A standard normal retain distribution beside a spike of width EPS where it has no mass."""

    retain: GridDistribution
    forget: GridDistribution
    p: Array
    weights: Array

    @classmethod
    def make(cls) -> Problem:
        """On a grid: the spike at [6, 6 + EPS], right of the normal distribution cut at 6."""
        edges = np.concatenate([np.linspace(-6, 6, 481), 6 + np.array([EPS])])
        normal = GaussianMixture(np.zeros((1, 1)), np.ones(1), np.ones(1)).on_grid(edges[:-1])
        retain = GridDistribution(edges, np.append(normal.density, 0.0))
        forget = GridDistribution.uniform(edges, 6, 6 + EPS)
        return cls(retain, forget, mixture_density(retain.density, forget.density, GAMMA, retain.weights), retain.weights)

    def classifier(self, delta: float) -> Array:
        """Right on retain; on the spike it says retain with probability `1 - exp(-delta / gamma)`: excess risk delta."""
        return np.where(self.forget.density > 0, -math.expm1(-delta / GAMMA), 1.0)

    def errors(self, delta: float, temperature: float) -> tuple[float, float]:
        """Relative forget error `F_T / p_bar` and retain error (nats)."""
        by = self.classifier(delta)
        hat = np.exp(guided_log_density(log(self.p), log(by), temperature, log(self.weights)).log_density)
        r, f, w = self.retain.density, self.forget.density, self.weights
        return forget_error(hat, r, f, w) / math.exp(self.log_p_bar), retain_error(r, hat, w)

    @property
    def log_p_bar(self) -> float:
        """`E_{p_r} log p`."""
        on = self.retain.density > 0
        return float((self.weights * self.retain.density)[on] @ log(self.p[on]))


def run(seed: int = 0) -> Result:
    """The predicted T uses retain samples drawn with `seed`; everything else is exact."""
    problem, rng = Problem.make(), np.random.default_rng(seed)
    r, f, w = problem.retain.density, problem.forget.density, problem.weights
    samples = problem.retain.sample(SAMPLES, rng)
    log_p = log(problem.p)[np.searchsorted(problem.retain.edges, samples, side="right") - 1]
    gap = TemperingConstants.from_densities(r, f, GAMMA, 1.0, w).concentration_gap
    rows: list[list[Any]] = []
    summary: list[list[Any]] = []
    for delta in DELTAS:
        by = problem.classifier(delta)
        measured, kappa = excess_bce_risk(by, r, f, GAMMA, w), retain_log_ratio(by, r, f, GAMMA, w)
        for t in TEMPERATURES:
            constants = TemperingConstants.from_densities(r, f, GAMMA, t, w)
            forget, retain = problem.errors(delta, t)
            forget_bound = tempered_forget_error_bound(constants, measured, kappa) / math.exp(constants.log_p_bar)
            retain_bound = tempered_retain_error_bound(constants, measured, kappa)
            predicted = measured / (GAMMA * (1 - GAMMA)) * math.exp(gap / t) + constants.retain_bias
            rows.append([delta, t, forget, forget_bound, retain, retain_bound, constants.retain_bias, forget + retain, predicted])
        best = _best(problem, delta)
        chosen = {
            method: optimal_temperature(measured, GAMMA, gap, log_p, t_max=T_MAX, method=method) for method in ("cgf", "lambert")
        }
        costs = [sum(problem.errors(delta, t)) for t in (1.0, best, *chosen.values())]
        critical = critical_temperature(measured, GAMMA, gap, TOLERANCE)
        summary.append([f"{delta:.0e}", best, *chosen.values(), critical, *costs])
    columns = ("delta", "T", "F / p_bar", "F / p_bar, bound", "R", "R, bound", "B_r", "J", "J, predicted")
    short = (
        "delta",
        "best T",
        "T by (8.1)",
        "T by Lambert W",
        "critical T",
        "J at T=1",
        "J at best",
        "J by (8.1)",
        "J by Lambert W",
    )
    excess = max(row[7] / row[6] - 1 for row in summary), max(row[8] / row[6] - 1 for row in summary)
    found = [
        f"Concentration gap {gap:.2f} nats. J = F / p_bar + R at the T predicted from {SAMPLES} retain samples is within "
        f"{excess[0]:.1%} of the least possible with (8.1), within {excess[1]:.0%} with Lambert W.",
        f"At delta = {summary[-1][0]} tempering takes J from {summary[-1][5]:.3g} to {summary[-1][6]:.2g}.",
    ]
    settings = {"seed": seed, "gamma": GAMMA, "eps": EPS, "lambda": 1.0, "t_max": T_MAX, "tolerance": TOLERANCE}
    values = np.array(rows)
    return Result(
        "trade-off",
        "The trade-off over T, and its predicted optimum",
        settings,
        found,
        Table(short, summary),
        Table(columns, rows),
        lambda: _draw(values, summary),
    )


def _best(problem: Problem, delta: float) -> float:
    """The T in [1, T_MAX] with the least measured J."""

    def cost(beta: float) -> float:
        return sum(problem.errors(delta, 1 / (1 - beta)))

    found = minimize_scalar(cost, bounds=(0, 1 - 1 / T_MAX), method="bounded", options={"xatol": 1e-8})
    return float(1 / (1 - found.x))


def _draw(values: Any, summary: list[list[Any]]) -> Any:
    figure, axes = style.panels(1, 3, (12, 3.9))
    one = values[values[:, 0] == SHOWN_DELTA]
    for axis, at, colour, title, name in (
        (axes[0, 0], 2, style.VERMILION, "Forget error falls with T", r"$F_T\,/\,\bar{p}$"),
        (axes[0, 1], 4, style.BLUE, "Retain error rises with T", "$R_T$ (nats)"),
    ):
        axis.plot(one[:, 1], one[:, at], color=colour, label="measured")
        axis.plot(one[:, 1], one[:, at + 1], "--", color=style.MUTED, label="bound, Theorem 2")
        axis.fill_between(one[:, 1], one[:, at], one[:, at + 1], color=style.FAINT, alpha=0.5, linewidth=0)
        axis.set_yscale("log")
        style.label(axis, f"{title} (δ = {SHOWN_DELTA:g})", "temperature T", name)
        axis.legend()
    axes[0, 1].plot(one[1:, 1], one[1:, 6], ":", color=style.INK, label="bias $B_r$ alone", linewidth=1.4)
    axes[0, 1].legend()
    axis = axes[0, 2]
    for i, delta in enumerate(DELTAS):
        of, row = values[values[:, 0] == delta], summary[i]
        colour = style.SERIES[(4, 2, 0)[i]][0]
        axis.plot(of[:, 1], of[:, 7], color=colour, label=f"δ = {delta:g}")
        axis.plot(of[:, 1], of[:, 8], ":", color=style.INK, linewidth=1.1)
        for at, marker, size in ((2, "o", 7), (3, "x", 7)):
            axis.plot([row[at]], [row[at + 5]], marker, color=colour, markersize=size, markeredgewidth=1.8)
    axis.plot([], [], ":", color=style.INK, linewidth=1.1, label="predicted, (8.1)")
    axis.plot([], [], "o", color=style.MUTED, label="chosen by (8.1)")
    axis.plot([], [], "x", color=style.MUTED, markeredgewidth=1.8, label="chosen by Lambert W")
    axis.set_yscale("log")
    style.label(axis, "Their sum has one minimum", "temperature T", r"$J = F_T\,/\,\bar{p} + R_T$")
    axis.legend(ncols=2, fontsize=8)
    return figure
