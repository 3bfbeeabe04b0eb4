"""Distributions over some tokens and the rest against loops."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tempertilt.fitting.distributions import TAU, below_the_likeliest, matching_tau, with_token


@dataclass
class Case:
    """Random distributions `(n, V)` of which K tokens have columns, and what is wanted of one of them."""

    whole: np.ndarray
    columns: torch.Tensor
    rest: torch.Tensor
    rows: torch.Tensor
    wanted: torch.Tensor


def make_case(n: int = 40, size: int = 30, k: int = 12, spread: float = 2.0) -> Case:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, size)) * spread
    whole = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rest = torch.tensor(np.log(whole[:, k:].sum(1)), dtype=torch.float32)
    columns = torch.tensor(np.log(whole[:, :k]), dtype=torch.float32)
    return Case(whole, columns, rest, torch.tensor(rng.integers(0, k, n)), torch.tensor(-rng.uniform(0.01, 8, n)).float())


@pytest.mark.parametrize("tau", [1.0, 1.7])
def test_a_distribution_with_its_token(tau: float) -> None:
    case = make_case()
    columns, rest = with_token(tau * case.columns, tau * case.rest, case.rows, case.wanted)
    torch.testing.assert_close(columns.exp().sum(-1) + rest.exp(), torch.ones(40))
    for i, row in enumerate(case.rows.tolist()):
        own = math.exp(float(case.wanted[i]))
        weights = {j: math.exp(tau * float(case.columns[i, j])) for j in range(12) if j != row}
        weights["rest"] = math.exp(tau * float(case.rest[i]))  # type: ignore[index]
        expected = {j: (1 - own) * weight / sum(weights.values()) for j, weight in weights.items()}
        made = {j: math.exp(float(columns[i, j])) for j in range(12)} | {"rest": math.exp(float(rest[i]))}
        assert made.pop(row) == pytest.approx(own, rel=1e-4)  # type: ignore[call-overload]
        assert made == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_an_unsure_token_is_put_below_the_likeliest() -> None:
    """Ten digits, of which the true one is to have a little more than the others: it would be the greedy answer."""
    columns = torch.tensor([[0.1] * 10 + [1e-6]] * 3).log()
    rows, rest = torch.tensor([4, 4, 4]), torch.full((3,), 1e-6).log()
    wanted = below_the_likeliest(columns, rest, rows, torch.tensor([0.3, 0.01, 0.6]).log())
    made, _ = with_token(columns, rest, rows, wanted)
    own, others = made[:, 4].exp(), made[:, [0, 1, 2, 3, 5, 6, 7, 8, 9]].exp().amax(1)
    assert float(own[0]) == pytest.approx(float(others[0]) / 2, rel=1e-4)  # lowered
    assert own[1:].tolist() == pytest.approx([0.01, 0.6])  # low enough; sure enough


def mean_entropy(case: Case, tau: float) -> float:
    """Of the distributions over the columns and the rest, by a loop."""
    total = 0.0
    for i, row in enumerate(case.rows.tolist()):
        own = math.exp(float(case.wanted[i]))
        weights = [math.exp(tau * float(case.columns[i, j])) for j in range(12) if j != row] + [
            math.exp(tau * float(case.rest[i]))
        ]
        parts = [own, *((1 - own) * weight / sum(weights) for weight in weights)]
        total -= sum(part * math.log(part) for part in parts)
    return total / len(case.rows)


def test_tau_is_where_the_mean_entropy_agrees() -> None:
    case = make_case()
    for tau in (0.8, 1.4, 2.5):
        entropy = mean_entropy(case, tau)
        made = matching_tau(case.columns, case.rest, case.rows, case.wanted, entropy)
        assert made == pytest.approx(tau, abs=2e-3)
    for entropy, end in ((9.0, TAU[0]), (0.0, TAU[1])):
        assert matching_tau(case.columns, case.rest, case.rows, case.wanted, entropy) == pytest.approx(end, abs=1e-3)
