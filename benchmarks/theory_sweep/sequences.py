"""Theorem 6 and Propositions 7 and 8 on random sources with every history listed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from benchmarks.theory_sweep.tally import Tally
from scipy.special import expit, log_expit, rel_entr, softmax

from tempertilt.theory import bounds, sequences
from tempertilt.theory.checks import Array
from tempertilt.theory.classifier import binary_kl
from tempertilt.theory.constants import TemperingConstants
from tempertilt.theory.tokens import TokenDistribution, TokenMixture, guided_distribution, step_divergences, step_tempering_bias

SIZE, LENGTH = 5, 4


def random_distribution(
    rng: np.random.Generator, concentration: float, size: int = SIZE, length: int = LENGTH
) -> TokenDistribution:
    """Independent Dirichlet next-token distributions at every history."""
    return TokenDistribution(tuple(rng.dirichlet(np.full(size, concentration), size=size**t).clip(1e-12) for t in range(length)))


def sweep_sequences(tally: Tally, temperatures: Sequence[float], sources: int = 8, seed: int = 0) -> None:
    """Random retain and forget sources, the forget one sharp; classifiers with noise on their log-odds."""
    rng = np.random.default_rng(seed)
    for source in range(sources):
        retain, forget = random_distribution(rng, 1.0), random_distribution(rng, 0.1)
        for gamma in (0.05, 0.4):
            mixture = TokenMixture(retain, forget, gamma)
            for noise in (0.01, 0.3, 2.0):
                odds = [best.clip(-25, 25) + noise * rng.standard_normal(best.size) for best in mixture.log_odds()]
                label = {"source": source, "gamma": gamma, "noise": noise}
                for t in temperatures:
                    check_sequences(tally, mixture, odds, t, label)
                    check_histories(tally, mixture, odds, t, label)
                check_marginalised(tally, mixture, odds, label)
    check_disjoint(tally, temperatures, rng)
    check_memorised(tally, temperatures)


def check_sequences(tally: Tally, mixture: TokenMixture, odds: list[Array], t: float, label: dict[str, float]) -> None:
    """Theorem 6(a, b), the chain rule, and that the exact posterior gives the retain distribution at T = 1."""
    retain, base = mixture.retain, mixture.distribution()
    guided = guided_distribution(base, odds, t)
    steps = step_divergences(retain, guided)
    whole = float(rel_entr(retain.prefix_probs()[-1], guided.prefix_probs()[-1]).sum())
    tally.at_most("Section 7: |chain rule - direct| <= 1e-9", abs(whole - steps.sum()), 1e-9, 0.0, **label, T=t)
    bias = step_tempering_bias(retain, base, t)
    bound = sequences.token_retain_error_bound(mixture.excess_risks(odds), mixture.gamma, t, retain.vocab_size, bias)
    name = "Theorem 6(a): retain error at T = 1" if t == 1 else "Theorem 6(b): retain error at T > 1"
    tally.at_most(name, whole, bound, **label, T=t)
    if t == 1:
        exact = guided_distribution(base, mixture.log_odds(), 1.0).prefix_probs()[-1]
        deviation = float(np.abs(exact - retain.prefix_probs()[-1]).sum())
        tally.at_most("Section 7: exact posterior at T = 1 gives p_r, to 1e-10", deviation, 1e-10, 0.0, **label)


def check_histories(tally: Tally, mixture: TokenMixture, odds: list[Array], t: float, label: dict[str, float]) -> None:
    """Theorem 2 at single histories, with the local share and excess risk."""
    base = mixture.distribution()
    guided = guided_distribution(base, odds, t)
    size, depth = base.vocab_size, base.length - 1
    f = expit(np.concatenate([[np.log1p(-mixture.gamma) - np.log(mixture.gamma)], *mixture.log_odds()]))
    start = sum(size**k for k in range(depth))
    for h in range(0, size**depth, max(1, size**depth // 6)):
        keep = float(f[start + h])
        if not 1e-9 < keep < 1 - 1e-9:
            continue
        here = slice(h * size, (h + 1) * size)
        best, by = mixture.log_odds()[depth][here], odds[depth][here]
        kl = binary_kl(expit(best), expit(by))
        delta = float(base.steps[depth][h] @ kl)
        retain, forget = mixture.retain.steps[depth][h], mixture.forget.steps[depth][h]
        constants = TemperingConstants.from_densities(retain / retain.sum(), forget / forget.sum(), 1 - keep, t)
        distribution = guided.steps[depth][h]
        case = {**label, "T": t, "history": h}
        error, divergence = float(forget @ np.abs(distribution - retain)), float(rel_entr(retain, distribution).sum())
        tally.at_most("Theorem 6(c): local forget error", error, bounds.tempered_forget_error_bound(constants, delta),
                      1e-12, **case)  # fmt: skip
        tally.at_most("Theorem 6: local retain error", divergence, bounds.tempered_retain_error_bound(constants, delta),
                      1e-12, **case)  # fmt: skip


def check_marginalised(tally: Tally, mixture: TokenMixture, odds: list[Array], label: dict[str, float]) -> None:
    """Proposition 7: averaging the last classifier over what may follow does not raise the excess risk."""
    base, f = mixture.distribution(), [expit(odds[-1])]
    for step in base.steps[:0:-1]:
        f.insert(0, (step * f[0].reshape(step.shape)).sum(-1))
    risks = mixture.excess_risks([np.log(of) - np.log1p(-of) for of in f])
    for t, delta in enumerate(risks[:-1]):
        tally.at_most("Proposition 7: delta_t <= delta_L", float(delta), float(risks[-1]), **label, position=t)


def check_disjoint(tally: Tally, temperatures: Sequence[float], rng: np.random.Generator) -> None:
    """Theorem 6(c) at a history where retain and forget go on with different tokens."""
    for case in range(100):
        size, split = 12, int(rng.integers(1, 11))
        retain, forget = np.zeros(size), np.zeros(size)
        forget[:split], retain[split:] = rng.dirichlet(np.full(split, 0.3)), rng.dirichlet(np.full(size - split, 1.0))
        keep = float(10 ** rng.uniform(-6, -0.05))
        p = keep * retain + (1 - keep) * forget
        odds = np.where(retain > 0, rng.normal(4, 2, size), rng.normal(-4, 2, size))
        kl = np.where(retain > 0, -log_expit(odds), -log_expit(-odds))
        delta, on = float(p @ kl), retain > 0
        kappa, entropy = float(retain @ -log_expit(odds)), -float(retain[on] @ np.log(retain[on]))
        for t in temperatures:
            with np.errstate(divide="ignore"):
                distribution = softmax(sequences.guided_token_logits(np.log(p), log_expit(odds), t))
            bound = sequences.local_forget_error_bound(delta, keep, float(forget.max()), entropy, t, kappa)
            error = float(forget @ np.abs(distribution - retain))
            tally.at_most("Theorem 6(c): disjoint local form", error, bound, T=t, case=case)


def check_memorised(tally: Tally, temperatures: Sequence[float]) -> None:
    """Proposition 8 against a softmax over the vocabulary, and solved for Q."""
    for zeta in (0.3, 1e-2, 1e-4):
        for ratio in (0.1, 1.0, 30.0):
            for size in (2, 100, 50_000):
                for t in temperatures:
                    p = np.full(size, zeta / (size - 1))
                    p[0] = 1 - zeta
                    f = np.full(size, math.log(ratio))
                    f[0] = 0.0
                    direct = float(softmax(np.log(p) / t + f)[0])
                    stated, case = sequences.memorized_token_probability(1 - zeta, ratio, size, t), {"zeta": zeta, "Q": ratio}
                    name = "Proposition 8: |stated - direct| <= 1e-9"
                    tally.at_most(name, abs(stated - direct), 1e-9, 0.0, **case, V=size, T=t)
                    if 1e-6 < stated < 1 - 1e-6:
                        again = sequences.memorized_token_required_ratio(1 - zeta, stated, size, t)
                        name = "Proposition 8: |solved for Q / Q - 1| <= 1e-8"
                        tally.at_most(name, abs(again / ratio - 1), 1e-8, 0.0, **case, V=size, T=t)
