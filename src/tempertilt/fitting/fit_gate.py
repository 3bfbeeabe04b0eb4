"""Fit the gates: choose exemplars of the forget records, their margins, and the thresholds (see `tempertilt.guidance.gate`).

The thresholds follow a rule that needs no reference: evidence of retain records is measured by gates made without their
documents, and a threshold rises until few enough of them open a gate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tempertilt.config.options import Options, option
from tempertilt.errors import DataError
from tempertilt.guidance.gate import LEAST_GAP, EvidenceGate, Reader, evidence_of

CHUNK = 8192  # states compared at a time
SAMPLE = 6000  # directions of which the projection is made
LOOKED_AT, LOOK = 512, 8  # retain records, and every so many of their tokens, in a first look for what is generic
BLOCK = 2048  # candidates compared at a time
CANDIDATES_IN_ALL = 8192  # so that the time grows with the text, not with its square
FOLDS = 5  # of the retain documents
FIRST_TOKENS = 4  # of a prompt: "Where can I find" is nobody's name
HIGHEST_THRESHOLD = 0.97  # so that an exemplar itself opens


class GateSettings(NamedTuple):
    """How one gate is fitted.

    Attributes:
        size: numbers of a direction, p.
        whitening_rank: directions of the states that are whitened one by one.
        per_part: exemplars that a prompt or an answer may add.
        at_most: exemplars in all.
        threshold, weak_threshold: see `EvidenceGate`.
    """

    size: int
    whitening_rank: int
    per_part: int
    at_most: int
    threshold: float
    weak_threshold: float | None = None


@dataclass(frozen=True)
class GateConfig(Options):
    """How the gates are built."""

    gate: bool = option(False, "temper and tilt only where the text is about what is to be forgotten")
    output_gate: bool = option(True, "also open where the answer comes near the records after a turn that came near them")
    variants: int = option(4, "other spellings and settings of each forget prompt that the input gate is made of", ge=0)
    gate_depth: float = option(0.3, "share of the layers below the states that the input gate reads", gt=0, lt=1, advanced=True)
    whitening_rank: int = option(128, "directions whitened one by one; the rest share one variance", ge=1, advanced=True)
    asked_size: int = option(96, "numbers to which a state is projected for the input gate", ge=1, advanced=True)
    said_size: int = option(64, "numbers to which a state is projected for the output gate", ge=1, advanced=True)
    asked_per_part: int = option(2, "exemplars that each prompt and each answer may add to the input gate", ge=1, advanced=True)
    said_per_part: int = option(24, "exemplars that each answer may add to the output gate", ge=1, advanced=True)
    max_asked: int = option(1000, "exemplars of the input gate in all", ge=1, advanced=True)
    max_said: int = option(2000, "exemplars of the output gate in all", ge=1, advanced=True)
    asked_threshold: float = option(
        0.9,
        "least evidence at which the input gate opens: 0 is retain text's, 1 an exemplar's; retain text may raise it, up to 0.97",
        gt=0,
        lt=1,
    )
    near_threshold: float = option(
        0.6, "evidence of the input gate that is enough where the answer comes near the records", gt=0, lt=1, advanced=True
    )
    said_threshold: float = option(
        0.6, "least evidence at which the answer comes near the records; retain text may raise it, up to 0.97", gt=0, lt=1
    )
    weak_threshold: float = option(
        0.45, "evidence of the output gate that is enough after a turn that was about the records", gt=0, lt=1, advanced=True
    )
    false_open: float = option(0.02, "share of left-out retain records that may open each gate", ge=0, lt=1, advanced=True)
    close_after: int = option(
        256,
        "tokens after the latest sign of the records at which the gates close in a text without turns; 0 = never",
        ge=0,
        advanced=True,
    )

    @property
    def asked(self) -> GateSettings:
        """Of the input gate."""
        sizes = (self.asked_size, self.whitening_rank, self.asked_per_part, self.max_asked)
        return GateSettings(*sizes, self.asked_threshold, self.near_threshold)

    @property
    def said(self) -> GateSettings:
        """Of the output gate."""
        sizes = (self.said_size, self.whitening_rank, self.said_per_part, self.max_said)
        return GateSettings(*sizes, self.said_threshold, self.weak_threshold)

    def layer(self, num_layers: int) -> int:
        """The number of decoder layers below the states that the input gate reads, 1 to `num_layers - 1`."""
        return min(num_layers - 1, max(1, round(self.gate_depth * num_layers)))


class TokenStates(NamedTuple):
    """States of the tokens of some texts.

    Attributes:
        states: for each text `(n, d)`.
        documents: the document that each text is of.
        prompts: for each text the number of its tokens that are given, not generated; None = none.
    """

    states: Sequence[Tensor]
    documents: Sequence[str]
    prompts: Sequence[int] | None = None

    def __add__(self, other: object) -> TokenStates:
        """All texts of both; a side without `prompts` has none."""
        assert isinstance(other, TokenStates)
        prompts = None
        if self.prompts is not None or other.prompts is not None:
            prompts = [count for part in (self, other) for count in (part.prompts or [0] * len(part.states))]
        return TokenStates([*self.states, *other.states], [*self.documents, *other.documents], prompts)

    def chunks(self) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """`(N, d)` float32 states of whole texts, about `CHUNK` at a time, and the text that each row is of `(N,)`."""
        first = size = 0
        for i, states in enumerate(self.states):
            size += len(states)
            if size >= CHUNK or i == len(self.states) - 1:
                part = self.states[first : i + 1]
                yield torch.cat([rows.float() for rows in part]), np.repeat(np.arange(first, i + 1), [len(rows) for rows in part])
                first, size = i + 1, 0


@dataclass(frozen=True)
class GateFit:
    """A gate and how well it separates what it was not made of.

    Attributes:
        gate: the gate.
        retain_evidence: `(R,)` highest evidence of each retain text, by exemplars and margins without a fifth of the documents,
            its own among them; empty if there is one document.
        seconds: wall time.
    """

    gate: EvidenceGate
    retain_evidence: NDArray[np.float32]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """JSON-ready."""
        opened = self.retain_evidence > self.gate.threshold
        return {
            "exemplars": len(self.gate.margins),
            "threshold": round(self.gate.threshold, 4),
            "opened": float(opened.mean()) if len(opened) else None,
        }


@torch.inference_mode()
def fit_gate(forget: TokenStates, retain: TokenStates, settings: GateSettings, reader: Reader | None = None) -> GateFit:
    """Choose exemplars of the forget texts and their margins.

    Args:
        forget, retain: states of one layer, on one device. Of each forget text, prompt and answer are two parts.
        reader: how states become directions; made from these states if not given.

    Raises:
        DataError: nothing tells the forget texts from the retained ones.
    """
    started = time.perf_counter()
    if reader is None:
        reader = fit_reader([forget, retain], settings.whitening_rank, settings.size)
    reader = Reader(*(tensor.to(forget.states[0].device) for tensor in reader))
    candidates = _candidates(forget, retain, reader, settings.per_part)
    folds = _folds(retain.documents)
    margins = _margins(candidates.directions, retain, folds, reader)
    special = candidates._replace(elsewhere=_elsewhere(candidates, forget, reader))
    exemplars, of_exemplars = special.select(margins.amax(1), settings.per_part, settings.at_most)
    if not len(exemplars):
        raise DataError(
            "the gate can't tell the forget records from the retained ones: each of their tokens has its like there. Take out of "
            "the retain records what is to be forgotten; else choose --no-gate, which tempers and tilts everywhere"
        )
    left_out = _evidence_left_out(retain, folds, special, margins, settings.per_part, reader)
    made = EvidenceGate(reader, exemplars, of_exemplars, threshold=settings.threshold, weak_threshold=settings.weak_threshold)
    gate = EvidenceGate.from_tensors(made.tensors("gate"), "gate", **made.settings)  # as it is stored
    return GateFit(gate.to(exemplars.device), left_out, time.perf_counter() - started)


def raised_threshold(least: float, evidence: NDArray[np.float32], allowed: float) -> float:
    """The lowest threshold from `least` to `HIGHEST_THRESHOLD` that at most a share `allowed` of the evidence `(R,)` is above."""
    if not len(evidence):
        return least
    above = float(np.sort(evidence)[::-1][int(allowed * len(evidence))])
    return max(least, min(HIGHEST_THRESHOLD, above))


def fit_reader(parts: Sequence[TokenStates], rank: int, size: int) -> Reader:
    """Whiten by the covariance of all states, then project on the `size` directions in which whitened states differ most.

    The whitening takes `rank` directions of largest variance one by one, the others by their mean variance (probabilistic PCA;
    Tipping, Bishop 1999).
    """
    shift = parts[0].states[0].double().mean(0)
    total, square, count = torch.zeros_like(shift), torch.zeros(len(shift), len(shift), dtype=shift.dtype, device=shift.device), 0
    for part in parts:
        for states, _ in part.chunks():
            centred = states.double() - shift
            total += centred.sum(0)
            square += centred.T @ centred
            count += len(states)
    offset = total / count
    values, vectors = torch.linalg.eigh(square / count - torch.outer(offset, offset))
    rank = min(rank, len(values) - 1)
    rest = values[:-rank].mean().clamp(min=1e-12)
    shrink = 1 - (rest / values[-rank:].clamp(min=float(rest))).sqrt()
    basis = vectors[:, -rank:]
    whiten = (torch.eye(len(shift), dtype=shift.dtype, device=shift.device) - (basis * shrink) @ basis.T).float()
    mean = (offset + shift).float()
    if size >= len(shift):
        return Reader(mean, whiten)
    directions = torch.cat([_some(part, SAMPLE // len(parts), Reader(mean, whiten)) for part in parts])
    _, axes = torch.linalg.eigh(directions.T.double() @ directions.double())
    return Reader(mean, axes[:, -size:].T.float() @ whiten)


def _some(part: TokenStates, count: int, reader: Reader) -> Tensor:
    """About `count` directions, from all over a part."""
    rows = torch.cat([states.float() for states in part.states])
    return reader.directions(rows[:: max(1, len(rows) // count)])


class _Candidates(NamedTuple):
    """Directions `(n, p)`, their parts `(n,)`, texts `(n,)`, and similarity to other forget documents `(n,)`."""

    directions: Tensor
    parts: NDArray[np.int64]
    texts: NDArray[np.int64]
    elsewhere: Tensor

    def chosen(self, margins: Tensor, per_part: int) -> Tensor:
        """Rows of the most special candidates of each part, most special first, given their margins `(n,)`."""
        rows = _lowest_of_each(margins.maximum(self.elsewhere), self.parts, per_part)
        return rows[margins[rows] <= 1 - LEAST_GAP]

    def select(self, margins: Tensor, per_part: int, at_most: int) -> tuple[Tensor, Tensor]:
        """Exemplars and margins: of the chosen, one for all that are nearly the same."""
        rows = self.chosen(margins, per_part)
        directions = self.directions[rows]
        kept = directions.new_empty((min(at_most, len(rows)), directions.shape[1]))
        numbers: list[int] = []
        for row in range(len(rows)):
            if len(numbers) == at_most:
                break
            if not numbers or float((kept[: len(numbers)] @ directions[row]).max()) <= 1 - LEAST_GAP:
                kept[len(numbers)] = directions[row]
                numbers.append(row)
        return kept[: len(numbers)], margins[rows[numbers]]


def _candidates(forget: TokenStates, retain: TokenStates, reader: Reader, per_part: int) -> _Candidates:
    """The tokens of each forget text that a look at retained text finds most special."""
    rows = [states[::LOOK].float() for states in retain.states[:LOOKED_AT]]
    look = reader.directions(torch.cat(rows)) if rows else None
    directions, parts, texts, likenesses = [], [], [], []
    count = max(1, min(4 * per_part, CANDIDATES_IN_ALL // (2 * len(forget.states))))
    for states, numbers in forget.chunks():
        found = reader.directions(states)
        likeness = found.new_zeros(len(states)) if look is None else (found @ look.T).amax(1)
        places = np.arange(len(numbers)) - np.searchsorted(numbers, numbers)
        prompts = np.zeros(len(forget.states), np.int64) if forget.prompts is None else np.asarray(forget.prompts)
        asked = places < prompts[numbers]
        generic = asked & (places < FIRST_TOKENS) & (prompts[numbers] > 2 * FIRST_TOKENS)
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
    return _Candidates(every, np.concatenate(parts)[where], np.concatenate(texts)[where], every.new_full((len(every),), -1.0))


def _folds(documents: Sequence[str]) -> NDArray[np.int64]:
    """The fold of each text, 0 to at most `FOLDS - 1`; a document is in one fold."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(documents))}
    return np.array([numbers[name] % FOLDS for name in documents], dtype=np.int64)


def _margins(candidates: Tensor, retain: TokenStates, folds: NDArray[np.int64], reader: Reader) -> Tensor:
    """`(n, folds)`: the highest similarity of each candidate to the retained text of each fold; -1 where there is none."""
    highest = candidates.new_full((len(candidates), FOLDS), -1.0)
    for states, texts in retain.chunks():
        directions, fold_of = reader.directions(states), torch.from_numpy(folds[texts]).to(candidates.device)
        for fold in range(FOLDS):
            if bool((inside := fold_of == fold).any()):
                for rows in _blocks(len(candidates)):
                    similarity = candidates[rows] @ directions[inside].T
                    highest[rows, fold] = highest[rows, fold].maximum(similarity.amax(1))
    return highest


def _elsewhere(candidates: _Candidates, forget: TokenStates, reader: Reader) -> Tensor:
    """`(n,)`: the highest similarity of each candidate to a token of another forget document; -1 if there is one document.

    What many documents say is how such texts are worded, not what they are about. It decides which candidates are taken, not
    their margins: the documents are all to be forgotten.
    """
    numbers = {name: i for i, name in enumerate(dict.fromkeys(forget.documents))}
    highest = candidates.elsewhere.clone()
    if len(numbers) < 2:
        return highest
    document = np.array([numbers[name] for name in forget.documents])
    own = torch.from_numpy(document[candidates.texts]).to(highest.device)
    for states, texts in forget.chunks():
        directions, other = reader.directions(states), torch.from_numpy(document[texts]).to(highest.device)
        for rows in _blocks(len(highest)):
            similarity = (candidates.directions[rows] @ directions.T).masked_fill(own[rows, None] == other, -1.0)
            highest[rows] = highest[rows].maximum(similarity.amax(1))
    return highest


def _blocks(count: int) -> Iterator[slice]:
    """All rows, `BLOCK` at a time: memory does not grow with their number."""
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


def _lowest_of_each(values: Tensor, owners: NDArray[np.int64], count: int) -> Tensor:
    """Rows of the `count` lowest values of each owner, lowest first over all."""
    order = np.lexsort((values.cpu().numpy(), owners))
    starts = np.searchsorted(owners[order], owners[order])
    rows = torch.from_numpy(order[np.arange(len(order)) - starts < count]).to(values.device)
    return rows[values[rows].argsort(stable=True)]


def _evidence_left_out(
    retain: TokenStates, folds: NDArray[np.int64], candidates: _Candidates, margins: Tensor, per_part: int, reader: Reader
) -> NDArray[np.float32]:
    """`(R,)` highest evidence of each retain text by exemplars and margins chosen without its fold; empty if there is one."""
    highest = np.full(len(retain.states), -np.inf, np.float32)
    present = sorted(set(folds.tolist()))
    if len(present) < 2:
        return highest[:0]
    chosen = {}
    for fold in present:
        without = margins[:, [other for other in range(FOLDS) if other != fold]].amax(1)
        rows = candidates.chosen(without, per_part)
        chosen[fold] = candidates.directions[rows], without[rows]
    for states, texts in retain.chunks():
        directions = reader.directions(states)
        for fold, (exemplars, without) in chosen.items():
            inside = folds[texts] == fold
            if inside.any() and len(exemplars):
                some = directions[torch.from_numpy(inside).to(directions.device)]
                evidence = torch.cat([evidence_of(part, exemplars, without) for part in some.split(CHUNK)])
                np.maximum.at(highest, texts[inside], evidence.cpu().numpy())
    return highest
