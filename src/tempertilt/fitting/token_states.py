"""States of the tokens of texts, of which gates are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 8192  # states at a time


class TokenStates(NamedTuple):
    """States of the tokens of some texts.

    Attributes:
        states: for each text `(n, d)`.
        documents: the document that each text is of; None = of retained text, it is in every margin and never left out.
        prompts: for each text the number of its tokens that are given, not generated; None = none.
    """

    states: Sequence[Tensor]
    documents: Sequence[str | None]
    prompts: Sequence[int] | None = None

    def __add__(self, other: object) -> TokenStates:
        """All texts of both; a side without `prompts` has none."""
        assert isinstance(other, TokenStates)
        prompts = None
        if self.prompts is not None or other.prompts is not None:
            prompts = [count for part in (self, other) for count in (part.prompts or [0] * len(part.states))]
        return TokenStates([*self.states, *other.states], [*self.documents, *other.documents], prompts)

    def cut(self, chosen: Sequence[bool], length: int) -> TokenStates:
        """The chosen texts in pieces of `length` tokens, each of them a text without a prompt; the others as they are."""
        states, documents, prompts = [], [], []
        for rows, document, prompt, cut in zip(self.states, self.documents, self.prompts or [0] * len(self.states), chosen):
            pieces = list(rows.split(length)) if cut else [rows]
            states += pieces
            documents += [document] * len(pieces)
            prompts += [0 if cut else prompt] * len(pieces)
        return TokenStates(states, documents, prompts)

    def chunks(self) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """`(N, d)` float32 states of whole texts, about `CHUNK` at a time, and the text that each row is of `(N,)`."""
        first = size = 0
        for i, states in enumerate(self.states):
            size += len(states)
            if size >= CHUNK or i == len(self.states) - 1:
                part = self.states[first : i + 1]
                yield torch.cat([rows.float() for rows in part]), np.repeat(np.arange(first, i + 1), [len(rows) for rows in part])
                first, size = i + 1, 0
