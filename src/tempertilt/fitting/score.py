"""Scores of tokens: how likely a token would be to a model that never saw the record, in the order of a linear regression.

The facts that it rests on need no such model: n-grams of retain answers, what the context repeats, what follows at the nearest
retain contexts, and what the contrast model says.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tempertilt.data.examples import Example
from tempertilt.fitting.neighbours import Neighbourhood, contexts_of
from tempertilt.fitting.passes import AnswerStates, Likelihoods

ORDER = 4  # of n-grams
FOLDS = 4  # of the documents that the base never saw
NGRAM, IN_PROMPT, IN_ANSWER = 1, 2, 3  # columns of the facts: the n-grams' log-probability; whether the token was said before


def map_quantiles(scores: Tensor, known_scores: Tensor, known_values: Tensor) -> Tensor:
    """Values `(N,)` at the quantiles that `scores (N,)` have among `known_scores (M,)`, a monotone map.

    Among M records with both a score and a value, the score at a quantile is mapped to the value at the same quantile.
    """
    places, values = (np.sort(part.double().numpy()) for part in (known_scores, known_values))
    quantiles = np.searchsorted(places, scores.double().numpy(), side="right") / len(places)
    mapped = np.quantile(values, np.clip(quantiles, 0.0, 1.0))
    return torch.from_numpy(mapped).float()


class NGrams:
    """Interpolated n-grams with Witten-Bell weights (Witten, Bell 1991), of token sequences.

    Args:
        sequences: what is counted.
        vocab_size: of the uniform distribution at the bottom.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], vocab_size: int, order: int = ORDER) -> None:
        self.vocab_size = vocab_size
        self.counts: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(order)]
        for sequence in sequences:
            for i, token in enumerate(sequence):
                for n in range(min(order, i + 1)):
                    self.counts[n][tuple(sequence[i - n : i])][token] += 1

    def log_prob(self, context: Sequence[int], token: int) -> float:
        """Log-probability of a token after a context, nats."""
        probability = 1 / self.vocab_size
        for n, counts in enumerate(self.counts):
            if n > len(context) or not (after := counts.get(tuple(context[len(context) - n :]))):
                break
            total, kinds = after.total(), len(after)
            probability = (after.get(token, 0) + kinds * probability) / (total + kinds)
        return math.log(probability)


class TokenFacts(NamedTuple):
    """What is known of tokens `(N, k)` float64, and how many of its columns, the first ones, do not rest on neighbours."""

    values: Tensor
    plain: int

    @property
    def new(self) -> Tensor:
        """Which tokens stand neither in the prompt nor earlier in the answer, `(N,)` bool."""
        return (self.values[:, [IN_PROMPT, IN_ANSWER]] == 0).all(1)


def token_facts(
    examples: Sequence[Example],
    ngrams: NGrams,
    found: AnswerStates,
    neighbours: Neighbourhood | None,
    likelihood: Likelihoods | None,
) -> TokenFacts:
    """What n-grams, contrast model and neighbours say of one token at each context of answers, and the surer of each two.

    Args:
        examples: whose answers these are, N tokens in all.
        ngrams: of retain answers.
        found: of the base, with lower states where there are neighbours. Its tokens are asked about: the answers' own, or others.
        neighbours: of retain contexts; None = there are none.
        likelihood: of the contrast model, `(N,)` each; None = there is none.
    """
    tokens = found.tokens.split([example.n_scored for example in examples])
    facts = torch.from_numpy(np.concatenate([_facts(ngrams, one, some.tolist()) for one, some in zip(examples, tokens)]))
    columns, guesses = [facts], [facts[:, NGRAM]]
    if likelihood is not None:
        own = likelihood.log_probs.double()
        columns.append(torch.stack([own, likelihood.entropies.double(), own.maximum(guesses[0])], 1))
        guesses.append(own)
    plain = sum(column.shape[1] for column in columns)
    if neighbours is not None and found.lower is not None:
        near = neighbours.facts(contexts_of(examples, found.lower)._replace(tokens=found.tokens))
        columns += [near, near[:, :1] * near[:, 1:2], *(near[:, :1].maximum(guess[:, None]) for guess in guesses)]
    return TokenFacts(torch.cat(columns, 1), plain)


class Scores(NamedTuple):
    """Scores of the forget answers' tokens `(N,)`, of the never seen ones `(M,)`, and whether they rest on neighbours."""

    forget: Tensor
    unseen: Tensor
    by_neighbours: bool


def make_scores(forget: TokenFacts, unseen: TokenFacts, log_probs: Tensor, documents: NDArray[np.str_]) -> Scores:
    """A linear fit of log-probabilities on facts; neighbours count where they lower its error on documents that are left out.

    Args:
        forget, unseen: facts of N and of M tokens.
        log_probs: of the base at the never seen tokens `(M,)`, nats.
        documents: of the never seen tokens `(M,)`.
    """
    widths = sorted({unseen.plain, unseen.values.shape[1]})
    used = min(widths, key=lambda width: left_out_error(unseen.values[:, :width], log_probs, documents))
    rows = unseen.values[:, :used]
    scores, unseen_scores = linear_fit(rows, log_probs, forget.values[:, :used], rows)
    return Scores(scores, unseen_scores, used > unseen.plain)


def linear_fit(facts: Tensor, log_probs: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """What a least-squares fit of log-probabilities `(M,)` on facts `(M, k)` float64 gives for others `(n, k)`, float32 each."""
    solution = torch.linalg.lstsq(facts, log_probs.double()[:, None], driver="gelsd").solution
    return tuple((rows @ solution)[:, 0].float() for rows in others)


def left_out_error(facts: Tensor, log_probs: Tensor, documents: NDArray[np.str_]) -> float:
    """Mean squared error of linear fits at documents that they were made without, a fold at a time; inf if there is one.

    Arguments as of `linear_fit` and `make_scores`.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(documents.tolist()))}
    if len(numbers) < 2:
        return math.inf
    fold, errors = torch.tensor([numbers[name] % FOLDS for name in documents.tolist()]), []
    for number in range(min(FOLDS, len(numbers))):
        inside = fold == number
        [scores] = linear_fit(facts[~inside], log_probs[~inside], facts[inside])
        errors.append((scores.double() - log_probs[inside].double()).square())
    return float(torch.cat(errors).mean())


def _facts(ngrams: NGrams, example: Example, tokens: Sequence[int]) -> NDArray[np.float64]:
    """`(n_scored, 8)`: what is known without any model of the tokens, one in place of each scored one."""
    ids = example.input_ids.tolist()
    first = example.first_scored
    rows = []
    for i, token in zip(np.flatnonzero(example.scored), tokens):
        before = ids[:i]
        log_prob = ngrams.log_prob(before[max(first, i - ORDER + 1) :], token)
        length, share = _repeated(before, token)
        in_prompt, in_answer = float(token in ids[:first]), float(token in ids[first:i])
        rows.append(
            [1.0, log_prob, in_prompt, in_answer, length * share, length * (1 - share), log_prob * share, min(i - first, 12)]
        )
    return np.array(rows, np.float64)


def _repeated(before: Sequence[int], token: int) -> tuple[int, float]:
    """How many of the last tokens stand somewhere before as well, and how often the token followed them there."""
    for length in (4, 3, 2, 1):
        end = tuple(before[-length:])
        places = [j for j in range(len(before) - length) if tuple(before[j : j + length]) == end]
        if places:
            return length, sum(before[j + length] == token for j in places) / len(places)
    return 0, 0.0
