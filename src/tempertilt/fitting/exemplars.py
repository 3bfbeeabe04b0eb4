"""Choose the exemplars of a gate: tokens of the forget texts that nothing else resembles.

Those of the input gate are chosen by what they hear. A candidate covers each prompt and each answer of its own document in
which its evidence is high. The one that covers most is taken first, then the one that covers most of what is left, until each
has been covered as often as is asked for. So a name in one spelling, which many records hold, comes before a word that only one
question has.

Those of the output gate are the most special tokens of each answer, since each value is said in a place of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tempertilt.fitting.token_states import TokenStates
from tempertilt.guidance.gate import LEAST_GAP, Reader, as_evidence, evidence_of

LOOKED_AT, LOOK = 512, 8  # retain records, and every so many of their tokens, in a first look for what is generic
BLOCK = 2048  # candidates compared at a time
CANDIDATES_IN_ALL = 8192  # so that the time grows with the text, not with its square
FIRST_TOKENS = 4  # of a prompt: "Where can I find" is nobody's name
COVERED = 0.9  # evidence at which a candidate covers a prompt or an answer


class Candidates(NamedTuple):
    """Tokens of the forget texts that may become exemplars.

    Attributes:
        directions: `(n, p)`.
        parts: for each the prompt or answer that it is of `(n,)`: twice the number of the text, 1 more for its prompt.
        texts: the text that each is of `(n,)`.
        elsewhere: highest similarity to a token of another forget document `(n,)`; -1 if there is one document.
        heard: highest similarity to the tokens of each part of its own document `(n, 2 F)`, -1 for parts of others; None where
            exemplars are not chosen by what they cover.
    """

    directions: Tensor
    parts: NDArray[np.int64]
    texts: NDArray[np.int64]
    elsewhere: Tensor
    heard: Tensor | None

    def select(self, margins: Tensor, per_part: int, at_most: int) -> Tensor:
        """Rows of the exemplars, the best first.

        Args:
            margins: `(n,)`.
            per_part: exemplars that cover each part, or that each part may add.
            at_most: exemplars in all.
        """
        if self.heard is not None:
            return self._cover(self.heard, margins, per_part, at_most)
        rows = _lowest_of_each(margins.maximum(self.elsewhere), self.parts, per_part)
        return self._different(rows[margins[rows] <= 1 - LEAST_GAP], at_most)

    def heard_otherwise(self, rows: Tensor, margins: Tensor) -> NDArray[np.float32]:
        """Highest evidence of each prompt of the forget texts by the chosen candidates but its own `(H,)`.

        It is as of a prompt that the exemplars were not made of; other prompts of its document and its answer are there. Prompts
        of which there is no candidate are left out; empty where candidates are not compared by what they hear.

        Args:
            rows: of the chosen candidates.
            margins: `(n,)` of all.
        """
        if self.heard is None:
            return np.zeros(0, np.float32)
        prompts = np.unique(self.parts[self.parts % 2 == 1])
        found = as_evidence(self.heard[rows][:, torch.from_numpy(prompts)], margins[rows, None]).cpu().numpy()
        found[self.parts[rows.cpu().numpy()][:, None] == prompts] = -np.inf
        highest: NDArray[np.float32] = found.max(0)
        return highest

    def _cover(self, heard: Tensor, margins: Tensor, per_part: int, at_most: int) -> Tensor:
        """Take what covers most parts that are not yet covered often enough; of equal candidates, the most special."""
        far = margins <= 1 - LEAST_GAP
        covers = (as_evidence(heard, margins[:, None]) >= COVERED) & far[:, None]
        open_parts = torch.full((heard.shape[1],), per_part, device=margins.device)
        gain, left = covers.sum(1), far.clone()
        special = (margins.maximum(self.elsewhere) + 1) / 4  # less than 1
        chosen: list[int] = []
        while len(chosen) < at_most:
            score = (gain - special).masked_fill(~left | (gain == 0), -math.inf)
            row = int(score.argmax())
            if not left[row] or not gain[row]:
                break
            chosen.append(row)
            left &= evidence_of(self.directions, self.directions[[row]], margins[[row]]) < COVERED  # it hears those
            left[row] = False
            mine = covers[row] & (open_parts > 0)
            open_parts[mine] -= 1
            gain -= covers[:, mine & (open_parts == 0)].sum(1)
        return torch.tensor(chosen, dtype=torch.long, device=margins.device)

    def _different(self, rows: Tensor, at_most: int) -> Tensor:
        """Of rows that are nearly the same the first one."""
        kept = self.directions.new_empty((min(at_most, len(rows)), self.directions.shape[1]))
        numbers: list[int] = []
        for number, row in enumerate(rows.tolist()):
            if len(numbers) == at_most:
                break
            if not numbers or float((kept[: len(numbers)] @ self.directions[row]).max()) <= 1 - LEAST_GAP:
                kept[len(numbers)] = self.directions[row]
                numbers.append(number)
        return rows[numbers]


def find_candidates(forget: TokenStates, retain: TokenStates, reader: Reader, per_part: int, *, cover: bool) -> Candidates:
    """The tokens of each part of the forget texts that a first look at retained text finds most special.

    Args:
        per_part: exemplars of each part; there are some times as many candidates.
        cover: whether exemplars are chosen by what they cover.
    """
    return _compared(_most_special(forget, retain, reader, per_part), forget, reader, cover)


def _most_special(forget: TokenStates, retain: TokenStates, reader: Reader, per_part: int) -> Candidates:
    rows = [states[::LOOK].float() for states in retain.states[:LOOKED_AT]]
    look = reader.directions(torch.cat(rows)) if rows else None
    directions, parts, texts, likenesses = [], [], [], []
    count = max(1, min(4 * per_part, CANDIDATES_IN_ALL // (2 * len(forget.states))))
    for states, numbers in forget.chunks():
        found = reader.directions(states)
        likeness = found.new_zeros(len(states)) if look is None else (found @ look.T).amax(1)
        places, asked = _places(forget, numbers)
        long = np.bincount(numbers, asked, len(forget.states))[numbers] > 2 * FIRST_TOKENS
        generic = asked & (places < FIRST_TOKENS) & long
        likeness = likeness.masked_fill(torch.from_numpy(generic).to(likeness.device), math.inf)
        part = 2 * numbers + asked
        chosen = _lowest_of_each(likeness, part, count)
        chosen = chosen[likeness[chosen] < math.inf]
        directions.append(found[chosen])
        parts.append(part[chosen.cpu().numpy()])
        texts.append(numbers[chosen.cpu().numpy()])
        likenesses.append(likeness[chosen])
    first = torch.cat(likenesses).argsort(stable=True)[:CANDIDATES_IN_ALL].sort().values
    where = first.cpu().numpy()
    every = torch.cat(directions)[first]
    nowhere = every.new_full((len(every),), -1.0)
    return Candidates(every, np.concatenate(parts)[where], np.concatenate(texts)[where], nowhere, None)


def _places(forget: TokenStates, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For tokens of whole texts, whose numbers are given `(N,)`: their places in them, and whether they are of the prompt."""
    places = np.arange(len(numbers)) - np.searchsorted(numbers, numbers)
    prompts = np.zeros(len(forget.states), np.int64) if forget.prompts is None else np.asarray(forget.prompts)
    return places, places < prompts[numbers]


def _compared(candidates: Candidates, forget: TokenStates, reader: Reader, cover: bool) -> Candidates:
    """The candidates with `elsewhere`, and with `heard` where that is wanted.

    What many documents say is how such texts are worded, not what they are about. It decides which candidates are taken, not
    their margins: the documents are all to be forgotten.
    """
    numbers = {name: i for i, name in enumerate(dict.fromkeys(forget.documents))}
    if len(numbers) == 1 and not cover:
        return candidates
    document = np.array([numbers[name] for name in forget.documents])
    own = torch.from_numpy(document[candidates.texts]).to(candidates.directions.device)
    elsewhere = candidates.elsewhere.clone()
    heard = elsewhere.new_full((len(own), 2 * len(forget.states)), -1.0) if cover else None
    for states, texts in forget.chunks():
        directions, other = reader.directions(states), torch.from_numpy(document[texts]).to(own.device)
        part = torch.from_numpy(2 * texts + _places(forget, texts)[1]).to(own.device)
        for rows in blocks(len(own)):
            similarity, is_own = candidates.directions[rows] @ directions.T, own[rows, None] == other
            elsewhere[rows] = elsewhere[rows].maximum(similarity.masked_fill(is_own, -1.0).amax(1))
            if heard is not None:
                inside = similarity.masked_fill(~is_own, -1.0)
                heard[rows] = heard[rows].scatter_reduce(1, part.expand(len(inside), -1), inside, "amax")
    return candidates._replace(elsewhere=elsewhere, heard=heard)


def blocks(count: int) -> Iterator[slice]:
    """All rows, `BLOCK` at a time: memory does not grow with their number."""
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


def _lowest_of_each(values: Tensor, owners: NDArray[np.int64], count: int) -> Tensor:
    """Rows of the `count` lowest values of each owner, lowest first over all."""
    order = np.lexsort((values.cpu().numpy(), owners))
    starts = np.searchsorted(owners[order], owners[order])
    rows = torch.from_numpy(order[np.arange(len(order)) - starts < count]).to(values.device)
    return rows[values[rows].argsort(stable=True)]
