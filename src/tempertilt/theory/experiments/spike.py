"""Theorem 3: a spike that sharpens while the classifier improves. Plain guidance diverges, tempered guidance vanishes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tempertilt.theory.checks import log
from tempertilt.theory.distributions import mixture_density
from tempertilt.theory.experiments import style
from tempertilt.theory.experiments.result import Result, Table, show
from tempertilt.theory.guidance import forget_error, guided_log_density, retain_error
from tempertilt.theory.spike import spike_example, spike_forget_error, spike_retain_error

GAMMA, RATE = 0.1, 0.5
EPS = tuple(10.0**-k for k in range(1, 9))
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0)
RATES = (0.25, 0.5, 0.75)
SLOPES_AT = tuple(np.linspace(1, 6, 41).tolist())


def direct_errors(eps: float, gamma: float, delta: float, temperature: float) -> tuple[float, float]:
    """Forget and retain error of the example, by sums over its two cells."""
    retain, forget, by, weights = spike_example(eps, gamma, delta)
    p = mixture_density(retain, forget, gamma, weights)
    hat = np.exp(guided_log_density(log(p), log(by), temperature, log(weights)).log_density)
    return forget_error(hat, retain, forget, weights), retain_error(retain, hat, weights)


def growth(rate: float, temperature: float) -> float:
    """`d log F_T / d log(1/eps)` between eps = 1e-19 and 1e-20, direct evaluation; the theorem says `1/T - s`."""
    far = [direct_errors(eps, GAMMA, eps**rate, temperature)[0] for eps in (1e-19, 1e-20)]
    return float(np.log10(far[1] / far[0]))


def run(seed: int = 0) -> Result:
    """Nothing is random here; `seed` is kept for the record."""
    rows: list[list[float]] = []
    for eps in EPS:
        for t in TEMPERATURES:
            delta = eps**RATE
            forget, retain = direct_errors(eps, GAMMA, delta, t)
            closed = spike_forget_error(eps, GAMMA, delta, t), spike_retain_error(eps, GAMMA, delta, t)
            rows.append([eps, delta, t, forget, closed[0], retain, closed[1]])
    columns = ("eps", "delta", "T", "forget error", "forget error, closed form", "retain error", "retain error, closed form")
    values = np.array(rows)
    forget_off = float(np.abs(values[:, 3] / values[:, 4] - 1).max())
    retain_off = float(np.abs(values[:, 5] - values[:, 6]).max())
    slopes = {rate: [growth(rate, t) for t in SLOPES_AT] for rate in RATES}
    crossings = {rate: 1 / float(np.interp(0, slopes[rate][::-1], 1 / np.array(SLOPES_AT[::-1]))) for rate in RATES}
    at = {(row[0], row[2]): row for row in rows}
    summary = Table(
        ("eps", "delta", "F (T=1)", "R (T=1)", "F (T=1.5)", "F (T=2)", "F (T=4)", "R (T=4)"),
        [
            [f"{eps:.0e}", at[eps, 1.0][1], at[eps, 1.0][3], at[eps, 1.0][5], at[eps, 1.5][3], at[eps, 2.0][3], at[eps, 4.0][3],
             at[eps, 4.0][5]]
            for eps in EPS[1::2]
        ],
    )  # fmt: skip
    sharpest = EPS[-1]
    found = [
        f"Closed forms and sums agree: forget error to {_order(forget_off)} relative, retain error to {_order(retain_off)} nats.",
        f"At eps = {sharpest:.0e} the forget error is {show(at[sharpest, 1.0][3])} at T = 1 and {show(at[sharpest, 4.0][3])} "
        f"at T = 4; the retain error of T = 1 is {show(at[sharpest, 1.0][5])} nats and gives no warning.",
        "The forget error stops growing at T = "
        + ", ".join(f"{crossings[rate]:.2f} for s = {rate:g}" for rate in RATES)
        + "; the theorem says T = 1/s.",
    ]
    settings = {"seed": seed, "gamma": GAMMA, "s": RATE, "delta": "eps^s"}
    return Result(
        "spike",
        "A sharpening spike: plain guidance diverges, tempered guidance vanishes",
        settings,
        found,
        summary,
        Table(columns, rows),
        lambda: _draw(values, slopes),
    )


def _order(deviation: float) -> str:
    """A deviation, or that it is below the 1e-12 that rounding explains."""
    return "1e-12" if deviation < 1e-12 else f"{deviation:.1e}"


def _draw(values: Any, slopes: dict[float, list[float]]) -> Any:
    figure, axes = style.panels(1, 3, (12, 3.9))
    for i, t in enumerate(TEMPERATURES):
        of = values[values[:, 2] == t]
        style.line(axes[0, 0], of[:, 0], of[:, 3], i, f"T = {t:g}")
        style.line(axes[0, 1], of[:, 0], of[:, 5], i, f"T = {t:g}")
    for axis, title, name in (
        (axes[0, 0], "Forget error: falls only for T > 1/s = 2", "forget error $F_T$"),
        (axes[0, 1], "Retain error: vanishes for every T", "retain error $R_T$ (nats)"),
    ):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.invert_xaxis()
        style.label(axis, title, "width ε of the spike (sharper →), excess risk √ε", name)
    axes[0, 0].legend()
    for i, rate in enumerate(RATES):
        colour = style.SERIES[(0, 2, 4)[i]][0]
        axes[0, 2].plot(SLOPES_AT, slopes[rate], color=colour, label=f"s = {rate:g}")
        axes[0, 2].plot(SLOPES_AT, [1 / t - rate for t in SLOPES_AT], ":", color=style.INK, linewidth=1)
        axes[0, 2].plot([1 / rate], [0], "o", color=colour, markersize=7)
    axes[0, 2].axhline(0, color=style.MUTED, linewidth=0.8)
    axes[0, 2].annotate("↑ diverges", (5.9, 0.03), ha="right", color=style.MUTED)
    axes[0, 2].annotate("↓ vanishes", (5.9, -0.17), ha="right", color=style.MUTED)
    style.label(axes[0, 2], "Growth exponent, dotted 1/T − s: zero at T = 1/s", "temperature T", "d log $F_T$ / d log(1/ε)")
    axes[0, 2].legend(title="excess risk $ε^s$", loc="upper right")
    return figure
