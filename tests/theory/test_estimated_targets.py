"""The inequalities of docs/theory.md, section 13, on random distributions.

They are the page's own: the package has no function of them, so this checks what the page says and no code.
"""

from __future__ import annotations

import numpy as np
from scipy.special import rel_entr

Array = np.ndarray


def kl(p: Array, q: Array) -> float:
    return float(rel_entr(p, q).sum())


def draw(rng: np.random.Generator, near: Array | None = None) -> Array:
    """A distribution over 12 tokens, of any sharpness; near another one where that is given."""
    logits = rng.normal(size=12) * rng.choice([0.01, 0.3, 3.0])
    weights = np.exp(logits) if near is None else near * np.exp(logits)
    return weights / weights.sum()


def test_the_bounds_hold_for_an_estimate_and_a_fit_that_are_off() -> None:
    rng = np.random.default_rng(0)
    ratios: list[tuple[float, float]] = []
    for _ in range(3000):
        p_r, p_f = draw(rng), draw(rng)
        q = draw(rng, p_r)
        p_hat = draw(rng, q)
        eta, epsilon, most = kl(p_r, q), kl(q, p_hat), float(np.abs(np.log(q / p_hat)).max())
        retain, forget = kl(p_r, p_hat), float((p_f * np.abs(p_hat - p_r)).sum())
        assert abs(retain - eta - float((p_r * np.log(q / p_hat)).sum())) < 1e-9
        ratios.append(
            (
                retain / (eta + epsilon + most * np.sqrt(2 * eta)),
                forget / (p_f.max() * (np.sqrt(2 * eta) + np.sqrt(2 * epsilon))),
            )
        )
    assert np.max(ratios) <= 1 + 1e-9
    assert np.min(np.max(ratios, axis=0)) > 0.3  # not so loose that nothing is said


def test_the_implied_classifier_has_the_estimation_error_in_its_excess_risk() -> None:
    rng = np.random.default_rng(1)
    for gamma in (0.1, 0.5, 0.9):
        p_r, p_f = draw(rng), draw(rng)
        p = (1 - gamma) * p_r + gamma * p_f
        q = p_r * 0.9 + p_f * 0.1
        f_star, f = (1 - gamma) * p_r / p, (1 - gamma) * q / p
        assert (f < 1).all()
        delta = float((p * (rel_entr(f_star, f) + rel_entr(1 - f_star, 1 - f))).sum())
        assert delta >= (1 - gamma) * kl(p_r, q) > 0
        others = p * (1 - f) / (p * (1 - f)).sum()
        assert abs(delta - (1 - gamma) * kl(p_r, q) - gamma * kl(p_f, others)) < 1e-9


def test_the_tilt_by_the_ratio_gives_the_retain_distribution_whatever_the_share() -> None:
    rng = np.random.default_rng(2)
    for gamma in (0.01, 0.5, 0.999):
        p_r, p_f = draw(rng), draw(rng)
        p = (1 - gamma) * p_r + gamma * p_f
        assert kl(p_r, p) <= -np.log(1 - gamma)
        tilted = p * np.exp(np.log(p_r) - np.log(p))
        assert np.allclose(tilted / tilted.sum(), p_r)
