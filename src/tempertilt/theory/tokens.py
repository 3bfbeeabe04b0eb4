"""Distributions of short token sequences with every history listed, so that Section 7 can be evaluated exactly.

A history of t tokens is the number that its tokens spell in base V: history `h` followed by token `y` is `h * V + y`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import log_softmax, rel_entr

from tempertilt.errors import ConfigError, DataError
from tempertilt.theory.checks import Array, check_share, check_values, log
from tempertilt.theory.sequences import guided_token_logits

MAX_SEQUENCES = 1_000_000


@dataclass(frozen=True)
class TokenDistribution:
    """A distribution of sequences of L tokens: `steps[t] (V^t, V)` holds p(next token | history of t tokens)."""

    steps: tuple[Array, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise DataError("a distribution needs at least one step")
        size = self.vocab_size
        _check_size(size, len(self.steps))
        for t, step in enumerate(self.steps):
            rows = check_values(step, f"steps[{t}]")
            if rows.shape != (size**t, size) or (rows < 0).any() or not np.allclose(rows.sum(-1), 1, rtol=0, atol=1e-9):
                raise DataError(f"steps[{t}] must be {size**t} rows of {size} probabilities that sum to 1")

    @classmethod
    def markov(cls, initial: Array, transition: Array, length: int) -> TokenDistribution:
        """A Markov chain: `initial (V,)`, `transition (V, V)` by rows."""
        size = len(initial)
        _check_size(size, length)
        later = (np.tile(transition, (size ** (t - 1), 1)) for t in range(1, length))
        return cls((np.asarray(initial)[None], *later))

    @classmethod
    def noisy_copy(cls, string: Sequence[int], vocab_size: int, slip: float) -> TokenDistribution:
        """Copies of `string` in which each token is another one, any of them equally, with probability `slip`."""
        _check_size(vocab_size, len(string))
        rows = []
        for t, token in enumerate(string):
            row = np.full(vocab_size, slip / (vocab_size - 1))
            row[token] = 1 - slip
            rows.append(np.tile(row, (vocab_size**t, 1)))
        return cls(tuple(rows))

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.steps[0].shape[-1])

    @property
    def length(self) -> int:
        """L."""
        return len(self.steps)

    def prefix_probs(self) -> list[Array]:
        """Probabilities of all histories of 0..L tokens; the last `(V^L,)` is the distribution of sequences."""
        probs = [np.ones(1)]
        for step in self.steps:
            probs.append((probs[-1][:, None] * step).reshape(-1))
        return probs


def _check_size(vocab_size: int, length: int) -> None:
    if vocab_size**length > MAX_SEQUENCES:
        raise ConfigError(f"{vocab_size} tokens at {length} positions are too many sequences; must be at most {MAX_SEQUENCES:,}")


@dataclass(frozen=True)
class TokenMixture:
    """`p = (1 - gamma) p_r + gamma p_f` over sequences, as the next-token distribution that a model of it would have."""

    retain: TokenDistribution
    forget: TokenDistribution
    gamma: float

    def __post_init__(self) -> None:
        check_share(self.gamma)

    def prefix_probs(self) -> list[Array]:
        """Probabilities of histories under p."""
        parts = zip(self.retain.prefix_probs(), self.forget.prefix_probs())
        return [(1 - self.gamma) * r + self.gamma * f for r, f in parts]

    def distribution(self) -> TokenDistribution:
        """p, token by token."""
        probs, size = self.prefix_probs(), self.retain.vocab_size
        return TokenDistribution(tuple(after.reshape(-1, size) / before[:, None] for before, after in pairwise(probs)))

    def log_odds(self) -> list[Array]:
        """`logit f*(h)` of histories of 1..L tokens."""
        shift = np.log1p(-self.gamma) - np.log(self.gamma)
        pairs = list(zip(self.retain.prefix_probs(), self.forget.prefix_probs()))[1:]
        return [log(r) - log(f) + shift for r, f in pairs]

    def excess_risks(self, log_odds: Sequence[Array]) -> Array:
        """`delta_t = E_{h_t ~ p} kl(f*(h_t) || f(h_t))` of a prefix classifier, `(L,)`, nats (Theorem 6)."""
        out = []
        for p, best, by in zip(self.prefix_probs()[1:], self.log_odds(), log_odds):
            f, g = np.exp(-np.logaddexp(0, -best)), np.exp(-np.logaddexp(0, best))
            cells = rel_entr(f, np.exp(-np.logaddexp(0, -by))) + rel_entr(g, np.exp(-np.logaddexp(0, by)))
            out.append(max(0.0, float(p @ cells)))
        return np.array(out)


def guided_distribution(base: TokenDistribution, log_odds: Sequence[Array], temperature: float) -> TokenDistribution:
    """Rule (7.1) at every history: `log p_hat = log p / T + log f - log Z`, f given as log-odds of histories of 1..L tokens."""
    steps = []
    for step, odds in zip(base.steps, log_odds):
        log_f = -np.logaddexp(0, -odds).reshape(step.shape)
        steps.append(np.exp(log_softmax(guided_token_logits(log(step), log_f, temperature), axis=-1)))
    return TokenDistribution(tuple(steps))


def step_divergences(distribution: TokenDistribution, other: TokenDistribution) -> Array:
    """`E_{h ~ p} KL(p(. | h) || q(. | h))` at each position `(L,)`, nats; they add up to the KL of the sequences."""
    pairs = zip(distribution.prefix_probs(), distribution.steps, other.steps)
    return np.array([float(h @ rel_entr(a, b).sum(-1)) for h, a, b in pairs])


def step_tempering_bias(retain: TokenDistribution, base: TokenDistribution, temperature: float) -> Array:
    """`E_{h ~ p_r} B_r(T; h)` at each position `(L,)`, nats (Theorem 6)."""
    beta, out = 1 - 1 / temperature, []
    for h, r, p in zip(retain.prefix_probs(), retain.steps, base.steps):
        log_p = np.where(r > 0, log(p), 0.0)
        out.append(float(h @ (np.log((r * np.exp(-beta * log_p)).sum(-1)) + beta * (r * log_p).sum(-1))))
    return np.array(out)
