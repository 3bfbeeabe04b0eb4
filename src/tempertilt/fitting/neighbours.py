"""What follows at the retain contexts that are like a given one (as in Khandelwal et al. 2020, kNN-LM): common wording shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tempertilt.data.batches import spread
from tempertilt.data.examples import Example
from tempertilt.fitting.fit_gate import fit_reader
from tempertilt.fitting.token_states import TokenStates

NEAREST, SCALE = (
    64,
    0.05,
)  # contexts that are asked what follows, and the difference in similarity by which their weight falls to 1/e
MOST = 32768  # retain contexts that are looked at
RANK, SIZE = 128, 96  # of the whitening, and numbers of a direction
LEAST_SHARE, FLOOR = 0.02, 1e-4  # of the mass, kept for what does not follow there; probability of any token, at least
LOOKED = 1024  # contexts that look for their nearest at a time


class Contexts(NamedTuple):
    """Contexts of answers' tokens: a lower layer's states `(N, d)` where they are predicted, the tokens `(N,)`, the documents."""

    lower: Tensor
    tokens: Tensor
    documents: NDArray[np.str_]


def contexts_of(examples: Sequence[Example], lower: Sequence[Tensor]) -> Contexts:
    """The contexts of examples, of whose tokens the states `(T, d)` are given."""
    parts = [rows[predicting(example)] for rows, example in zip(lower, examples)]
    tokens = np.concatenate([example.input_ids[example.scored] for example in examples])
    return Contexts(torch.cat(parts), torch.from_numpy(tokens).long(), documents_of(examples))


def documents_of(examples: Sequence[Example]) -> NDArray[np.str_]:
    """The document of each scored token `(N,)`."""
    return np.repeat(np.array([example.document for example in examples], str), [example.n_scored for example in examples])


def predicting(example: Example) -> Tensor:
    """`(T,)` bool: the positions that predict the scored tokens."""
    return torch.from_numpy(np.roll(example.scored, -1))


class Neighbourhood:
    """Retain contexts, to be asked what follows at those that are nearest."""

    def __init__(self, retain: Contexts) -> None:
        rows = torch.tensor(spread(range(len(retain.tokens)), MOST))
        lower, self._tokens, self._documents = retain.lower[rows].float(), retain.tokens[rows], retain.documents[rows.numpy()]
        self._reader = fit_reader([TokenStates([lower], [None])], min(RANK, lower.shape[1] - 1), SIZE)
        self._directions = self._reader.directions(lower)

    def facts(self, contexts: Contexts) -> Tensor:
        """`(N, 3)` float64: log p of each token by the nearest contexts, the nearest's similarity, the entropy of their weights.

        Contexts of the same document are left out.
        """
        parts = []
        for start in range(0, len(contexts.tokens), LOOKED):
            rows = slice(start, start + LOOKED)
            similarity = self._reader.directions(contexts.lower[rows]) @ self._directions.T
            own = torch.from_numpy(contexts.documents[rows, None] == self._documents)
            values, nearest = similarity.masked_fill(own, -1.0).topk(min(NEAREST, len(self._tokens)))
            weights = (values / SCALE).softmax(-1)
            share = (weights * (self._tokens[nearest] == contexts.tokens[rows, None])).sum(-1)
            entropy = -(weights * weights.clamp(min=1e-9).log()).sum(-1)
            parts.append(torch.stack([torch.log((1 - LEAST_SHARE) * share + FLOOR), values[:, 0], entropy], 1))
        return torch.cat(parts).double()
