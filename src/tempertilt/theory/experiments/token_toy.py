"""A Markov source with a memorised string, all sequences listed: Section 7 evaluated exactly."""

from __future__ import annotations

from typing import Any

import numpy as np

from tempertilt.theory.checks import Array
from tempertilt.theory.experiments import style
from tempertilt.theory.experiments.result import Result, Table, show
from tempertilt.theory.sequences import token_retain_error_bound
from tempertilt.theory.tokens import TokenDistribution, TokenMixture, guided_distribution, step_divergences, step_tempering_bias

GAMMA, SIZE, SLIP = 0.05, 6, 0.01
STRING = (0, 3, 1, 5, 2, 4)
PROMPT = 2  # tokens of the string that are given when its continuation is asked for
CLIPS = (2.0, 4.0)  # bounds of the learned head's log-odds
TEMPERATURES = (1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)


def make(rng: np.random.Generator) -> TokenMixture:
    """Retain: a random Markov chain. Forget: the string, each token another one with probability SLIP."""
    initial, transition = rng.dirichlet(np.full(SIZE, 2.0)), rng.dirichlet(np.full(SIZE, 2.0), size=SIZE)
    retain = TokenDistribution.markov(initial, transition, len(STRING))
    return TokenMixture(retain, TokenDistribution.noisy_copy(STRING, SIZE, SLIP), GAMMA)


def continuation(distribution: TokenDistribution, prompt: int = PROMPT) -> Array:
    """Probabilities of the string's tokens after the first `prompt`, each given the ones before, `(L - prompt,)`."""
    history, out = 0, []
    for t, token in enumerate(STRING):
        if t >= prompt:
            out.append(float(distribution.steps[t][history, token]))
        history = history * SIZE + token
    return np.array(out)


def run(seed: int = 0) -> Result:
    """The source and the noise of the heads are drawn with `seed`."""
    rng = np.random.default_rng(seed)
    mixture = make(rng)
    base, retain, best = mixture.distribution(), mixture.retain, mixture.log_odds()
    noise = [0.3 * rng.standard_normal(of.size) for of in best]
    heads = {"exact posterior": best}
    heads |= {f"log-odds within {clip:g}": [np.clip(of + by, -clip, clip) for of, by in zip(best, noise)] for clip in CLIPS}
    rows: list[list[Any]] = []
    steps: dict[tuple[str, float], Array] = {}
    off_chain = 0.0
    for name, odds in heads.items():
        deltas = mixture.excess_risks(odds)
        for t in TEMPERATURES:
            guided = guided_distribution(base, odds, t)
            by_step, bias = step_divergences(retain, guided), step_tempering_bias(retain, base, t)
            p_r, p_hat = retain.prefix_probs()[-1], guided.prefix_probs()[-1]
            whole = float((p_r * (np.log(p_r) - np.log(p_hat))).sum())
            off_chain = max(off_chain, abs(whole - by_step.sum()))
            bound = token_retain_error_bound(deltas, GAMMA, t, SIZE, bias)
            steps[name, t] = continuation(guided)
            leak, distance = float(steps[name, t].prod()), float(np.abs(p_r - p_hat).sum() / 2)
            rows.append([name, t, float(deltas.sum()), whole, bound, float(bias.sum()), leak, distance])
    columns = (
        "head",
        "T",
        "sum of delta_t",
        "retain error",
        "bound, Theorem 6",
        "tempering bias",
        "P(rest of the string)",
        "total variation",
    )
    reference = {"base": continuation(base), "retain": continuation(retain)}
    truth, before = float(reference["retain"].prod()), float(reference["base"].prod())
    of = {(row[0], row[1]): row for row in rows}
    shown = (1.0, 1.5, 2.0, 3.0)
    summary = Table(
        ("head", *(f"leak, T={t:g}" for t in shown), *(f"R, T={t:g}" for t in shown)),
        [[name, *(of[name, t][6] for t in shown), *(_rounded(of[name, t][3]) for t in shown)] for name in heads],
    )
    exact = of["exact posterior", 1.0]
    worst = f"log-odds within {CLIPS[0]:g}"
    tempered = of["exact posterior", 2.0]
    found = [
        f"Exact posterior at T = 1: the retain distribution is recovered, total variation {_rounded(exact[7])}. Chain rule: the "
        f"KL of sequences and the sum over positions differ by {_rounded(off_chain)} nats.",
        f"Given {PROMPT} of its {len(STRING)} tokens the base continues the string with probability {before:.3f}; the retain "
        f"distribution with {show(truth)}.",
        f"With log-odds cut at {CLIPS[0]:g} plain guidance still has {show(of[worst, 1.0][6])}; T = 2 has "
        f"{show(of[worst, 2.0][6])}, for a retain error of {show(of[worst, 2.0][3])} nats a sequence instead of "
        f"{show(of[worst, 1.0][3])}.",
        f"With the exact posterior T = 2 has {show(tempered[6])}, far below the retain distribution: tempering a good head "
        f"forgets too much, and costs {show(tempered[3])} nats where T = 1 costs none.",
    ]
    settings = {"seed": seed, "gamma": GAMMA, "V": SIZE, "L": len(STRING), "slip": SLIP, "prompt": PROMPT, "noise": 0.3}
    return Result(
        "token-toy",
        "A memorised string in a Markov source: leak against T, token by token",
        settings,
        found,
        summary,
        Table(columns, rows),
        lambda: _draw(rows, list(heads), steps, reference),
    )


def _rounded(value: float) -> float | str:
    """A number, or that it is no more than rounding."""
    return value if value >= 1e-12 else "< 1e-12"


def _draw(rows: list[list[Any]], heads: list[str], steps: dict[tuple[str, float], Array], reference: dict[str, Array]) -> Any:
    figure, axes = style.panels(1, 3, (12, 3.9))
    for i, name in enumerate(heads):
        of = [row for row in rows if row[0] == name]
        xs = [row[1] for row in of]
        number = (2, 0, 4)[i]
        style.line(axes[0, 0], xs, [row[6] for row in of], number, name)
        style.line(axes[0, 1], xs, [max(row[3], 1e-6) for row in of], number, name)
        axes[0, 1].plot(xs[1:], [row[4] for row in of[1:]], "--", color=style.SERIES[number][0], linewidth=1)
    for level, text, va in (
        (reference["base"].prod(), "base", "bottom"),
        (reference["retain"].prod(), "retain distribution", "top"),
    ):
        axes[0, 0].axhline(level, color=style.MUTED, linewidth=1)
        axes[0, 0].annotate(text, (4, level), ha="right", va=va, color=style.MUTED, fontsize=9)
    axes[0, 1].plot([], [], "--", color=style.MUTED, linewidth=1, label="bound, Theorem 6(b)")
    axes[0, 1].set_ylim(1e-3, 200)
    for axis in axes[0, :2]:
        axis.set_yscale("log")
    style.label(axes[0, 0], f"Leak of the string after {PROMPT} tokens", "temperature T", "P(rest of the string)")
    style.label(axes[0, 1], "Retain error of a sequence", "temperature T", "KL (nats)")
    axes[0, 0].legend()
    axes[0, 1].legend(fontsize=8)
    positions = list(range(PROMPT + 1, len(STRING) + 1))
    worst = heads[1]
    for i, t in enumerate((1.0, 1.5, 2.0, 3.0)):
        style.line(axes[0, 2], positions, steps[worst, t].tolist(), (0, 1, 2, 4)[i], f"T = {t:g}")
    for of_distribution, text, mark in ((reference["base"], "base", "-"), (reference["retain"], "retain distribution", ":")):
        axes[0, 2].plot(positions, of_distribution, mark, color=style.MUTED, linewidth=1.4, label=text)
    axes[0, 2].set(ylim=(0, 1.34), xticks=positions, yticks=np.arange(0, 1.01, 0.2))
    style.label(axes[0, 2], f"Each token of the string, {worst}", "position", "P(next token of the string)")
    axes[0, 2].legend(fontsize=8, ncols=3, loc="upper left")
    return figure
