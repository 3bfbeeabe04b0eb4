"""The sum of several parts' tilts, by exact evaluation on random densities."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from tempertilt import theory
from tempertilt.errors import DataError
from tempertilt.theory.checks import Array

CELLS = 30


def densities(seed: int, parts: int, sharpness: float, disjoint: bool = False) -> tuple[Array, Array, Array]:
    """Shares `(n + 1,)`, retain density `(k,)`, forget densities `(n, k)`; the first share is the retained one's."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(parts + 1, 2.0))
    forget = rng.dirichlet(np.full(CELLS, sharpness), size=parts)
    if disjoint:
        forget *= np.arange(CELLS) % parts == np.arange(parts)[:, None]
        forget /= forget.sum(1, keepdims=True)
    return shares, rng.dirichlet(np.ones(CELLS)), forget


def composed(p: Array, retain_probs: Array) -> Array:
    """The density with the sum of the parts' tilts."""
    with np.errstate(divide="ignore"):
        return np.exp(theory.guided_log_density(np.log(p), np.log(retain_probs).sum(0)).log_density)


def kl(p: Array, q: Array) -> float:
    on = p > 0
    return float(p[on] @ np.log(p[on] / q[on]))


def by_listing(probs: Array) -> float:
    """The probability that at least two of independent events happen, by all outcomes."""
    total = 0.0
    for happens in product((False, True), repeat=len(probs)):
        if sum(happens) >= 2:
            total += float(np.prod([q if does else 1 - q for q, does in zip(probs, happens)]))
    return total


@pytest.mark.parametrize("sharpness", [0.02, 0.3, 3.0])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_with_one_retain_distribution(parts: int, sharpness: float) -> None:
    """Identity (14.1), and the bounds of (14.2): parts that overlap take too much, never too little."""
    ratios = []
    for seed in range(20):
        shares, retain, forget = densities(seed, parts, sharpness)
        p = shares[0] * retain + shares[1:] @ forget
        f = shares[0] * retain / (shares[0] * retain + shares[1:, None] * forget)
        h = theory.parts_overlap(f)
        np.testing.assert_allclose(h, [by_listing(column) for column in (1 - f).T], atol=1e-14)
        np.testing.assert_allclose(p * f.prod(0), shares[0] * retain * (1 - h), atol=1e-15)
        p_hat, bound = composed(p, f), theory.composition_retain_error_bound(retain, f)
        error, mean = kl(retain, p_hat), float(retain @ h)
        pairs = sum((1 - f[i]) * (1 - f[j]) for i, j in combinations(range(parts), 2))
        assert (h <= pairs + 1e-14).all()
        assert error <= bound + 1e-12 and bound <= float(retain @ (h**2 / (2 * (1 - h)))) + 1e-12
        assert np.abs(p_hat - retain).sum() / 2 <= mean / (1 - mean) + 1e-12
        ratios.append(error / bound if bound > 1e-12 else 0.0)
    assert parts == 1 or max(ratios) > 0.3  # the bound is no triviality


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_that_say_nothing_in_common_are_exact(parts: int) -> None:
    for seed in range(10):
        shares, retain, forget = densities(seed, parts, 0.5, disjoint=True)
        p = shares[0] * retain + shares[1:] @ forget
        common = shares[0] * retain / (shares[0] * retain + shares[1:, None] * forget)
        each = 1 - shares[1:, None] * forget / p  # the others' text counts as retained
        for f in (common, each):
            np.testing.assert_allclose(composed(p, f), retain, atol=1e-14)
        assert theory.composition_retain_error_bound(retain, common) < 1e-15


def test_parts_that_change_different_coordinates_are_exact() -> None:
    """Where the base is a product and each part changes a factor of its own, the ratios multiply to that of the product."""
    rng = np.random.default_rng(0)
    base, retain = rng.dirichlet(np.ones(6), size=3), rng.dirichlet(np.ones(6), size=3)
    whole = np.einsum("i,j,k->ijk", *base)
    for i, axis in enumerate(((6, 1, 1), (1, 6, 1), (1, 1, 6))):
        whole = whole * (retain[i] / base[i]).reshape(axis)
    np.testing.assert_allclose(whole, np.einsum("i,j,k->ijk", *retain), rtol=1e-12)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_that_take_each_other_for_retained(parts: int) -> None:
    """(14.3): they take too little where they overlap, and of what only they say a share (1 - 1/m)^m stays."""
    for seed in range(20):
        shares, retain, forget = densities(seed, parts, 0.3)
        p = shares[0] * retain + shares[1:] @ forget
        a = shares[1:, None] * forget / p
        left = p * (1 - a).prod(0) - shares[0] * retain
        pairs = sum(a[i] * a[j] for i, j in combinations(range(parts), 2))
        assert (left >= -1e-15).all() and (left <= p * pairs + 1e-15).all()
        assert kl(retain, composed(p, 1 - a)) <= np.log1p(float(p @ pairs) / shares[0]) + 1e-12
    alone = np.full((parts, 1), 1 / parts)
    assert float((1 - alone).prod(0)[0]) == pytest.approx((1 - 1 / parts) ** parts) and (1 - 1 / parts) ** parts < np.exp(-1)


def test_errors_of_the_parts_add_up() -> None:
    rng = np.random.default_rng(1)
    for seed in range(20):
        shares, retain, forget = densities(seed, 3, 0.3)
        p = shares[0] * retain + shares[1:] @ forget
        f = shares[0] * retain / (shares[0] * retain + shares[1:, None] * forget)
        errors = rng.uniform(0.01, 0.5, size=3)
        fitted = f * np.exp(-errors[:, None] * rng.uniform(0, 1, size=f.shape))
        assert kl(retain, composed(p, fitted)) <= theory.composition_retain_error_bound(retain, f) + 2 * errors.sum() + 1e-12


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="must be \\(parts, cells\\)"):
        theory.parts_overlap([0.1, 0.2])
    with pytest.raises(DataError, match="must be the same"):
        theory.composition_retain_error_bound([0.5, 0.5], [[0.5]])
