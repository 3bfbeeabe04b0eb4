"""Fit the evidence gate: choose exemplars of the forget records and their margins (see `tempertilt.guidance.gate`)."""

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
from tempertilt.errors import ConfigError, DataError
from tempertilt.guidance.gate import LEAST_GAP, EvidenceGate, Whitening, evidence_of

CHUNK = 8192  # states compared at a time
LOOKED_AT, LOOK = 512, 8  # kept records, and every so many of their tokens, in a first look for what is generic
BLOCK = 2048  # candidates compared at a time
CANDIDATES = 8  # tokens of a prompt and of an answer that remain after it, at most
CANDIDATES_IN_ALL = 8192  # so that the time grows with the text, not with its square
FOLDS = 5  # of the kept documents
SAME = 0.9  # of two exemplars this similar, one is enough


@dataclass(frozen=True)
class GateConfig(Options):
    """How the evidence gate is built."""

    gate: bool = option(False, "temper and tilt only where the text is about what is to be forgotten")
    gate_depth: float = option(0.3, "share of the layers below the states that the gate reads", gt=0, lt=1, advanced=True)
    whitening_rank: int = option(128, "directions whitened one by one; the rest share one variance", ge=1, advanced=True)
    exemplars_per_part: int = option(2, "exemplars that each prompt and each answer may add", ge=1, advanced=True)
    max_exemplars: int = option(800, "exemplars in all", ge=1, advanced=True)
    gate_threshold: float = option(0.9, "evidence above which the gate opens: 0 is retained text's, 1 an exemplar's", gt=0, lt=1)
    gate_width: float = option(0.02, "evidence above the threshold at which the gate is fully open", gt=0, le=1, advanced=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate_threshold + self.gate_width > 1:
            raise ConfigError(
                f"gate_threshold is {self.gate_threshold}, gate_width {self.gate_width}; their sum must be at most 1"
            )

    def layer(self, num_layers: int) -> int:
        """The number of decoder layers below the states that are read, 1 to `num_layers - 1`."""
        return min(num_layers - 1, max(1, round(self.gate_depth * num_layers)))


class TokenStates(NamedTuple):
    """States of the tokens of some records.

    Attributes:
        states: for each record `(n, d)`.
        documents: the document that each record is of.
        prompts: for each record the number of its tokens that are given, not generated; None = all.
    """

    states: Sequence[Tensor]
    documents: Sequence[str]
    prompts: Sequence[int] | None = None

    def chunks(self) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """`(N, d)` float32 states of whole records, about `CHUNK` at a time, and the record that each row is of `(N,)`."""
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
        kept_evidence: `(R,)` highest evidence of each kept record, by a gate made without a fifth of the documents, its own among
            them.
        own_evidence: `(Fo,)` highest evidence in the prompt of each forget record.
        forget_evidence: `(Fo,)` the same by exemplars of other records alone; empty if there is one record.
        seconds: wall time.
    """

    gate: EvidenceGate
    kept_evidence: NDArray[np.float32]
    own_evidence: NDArray[np.float32]
    forget_evidence: NDArray[np.float32]
    seconds: float

    @property
    def false_alarms(self) -> float:
        """Share of kept records that open a gate made without their document; NaN if there are none."""
        return _share(self.kept_evidence > self.gate.threshold)

    @property
    def coverage(self) -> float:
        """Share of forget records whose prompt opens the gate."""
        return _share(self.own_evidence > self.gate.threshold)

    @property
    def recall(self) -> float:
        """Share of forget records whose prompt opens the gate without exemplars of its own; NaN if there are none."""
        return _share(self.forget_evidence > self.gate.threshold)

    def summary(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "layer": self.gate.layer,
            "exemplars": len(self.gate.margins),
            "threshold": self.gate.threshold,
            "coverage": self.coverage,
            "false_alarms_held_out": self.false_alarms,
            "recall_held_out": self.recall,
            "seconds": self.seconds,
        }


def _share(found: NDArray[np.bool_]) -> float:
    return float(found.mean()) if len(found) else math.nan


@torch.inference_mode()
def fit_gate(forget: TokenStates, kept: TokenStates, config: GateConfig, layer: int) -> GateFit:
    """Choose exemplars of the forget records and their margins.

    How often kept text that a gate was not made of opens it is measured under gates made without a fifth of the documents.

    Args:
        forget, kept: states after `layer` decoder layers; on one device.
        layer: for the gate to remember.

    Raises:
        DataError: nothing tells the forget records from the kept ones.
    """
    started = time.perf_counter()
    whitening = fit_whitening([forget, kept], config.whitening_rank)
    directions, owners = _candidates(forget, kept, whitening)
    folds = _folds(kept.documents)
    margins = _margins(directions, kept, folds, whitening)
    candidates = _Candidates(directions, owners, margins, _elsewhere(directions, owners, forget, whitening))
    exemplars, of_exemplars = candidates.select(margins.amax(1), config)
    if not len(exemplars):
        raise DataError(
            "the gate can't tell the forget records from what is kept: each of their tokens has its like there. If the same text "
            "is in both, mend the records; else choose --no-gate, which tempers and tilts everywhere"
        )
    made = EvidenceGate(whitening, exemplars, of_exemplars, layer=layer, threshold=config.gate_threshold, width=config.gate_width)
    gate = EvidenceGate.from_tensors(made.tensors(), layer=layer, threshold=made.threshold, width=made.width)  # as it is stored
    gate = gate.to(exemplars.device)
    prompts = forget.states if forget.prompts is None else [rows[:n] for rows, n in zip(forget.states, forget.prompts)]
    own = np.array([float(gate.evidence(rows).amax()) for rows in prompts], np.float32)
    return GateFit(
        gate,
        _evidence_left_out(kept, folds, candidates, config, whitening),
        own,
        _evidence_of_others(prompts, candidates, config, whitening),
        time.perf_counter() - started,
    )


def fit_whitening(parts: Sequence[TokenStates], rank: int) -> Whitening:
    """Whiten by the covariance of all rows: `rank` directions one by one, the others by their mean variance."""
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
    return Whitening((offset + shift).float(), vectors[:, -rank:].T.float().contiguous(), shrink.float())


def _candidates(forget: TokenStates, kept: TokenStates, whitening: Whitening) -> tuple[Tensor, NDArray[np.int64]]:
    """Directions `(n, d)` of the tokens of each forget record that a look at kept text finds most special.

    Their owner is twice the number of the record, and 1 more in its prompt; as many of the prompt as of the answer.
    """
    rows = [states[::LOOK].float() for states in kept.states[:LOOKED_AT]]
    look = whitening.directions(torch.cat(rows)) if rows else None
    found, owners, likenesses = [], [], []
    count = max(1, min(CANDIDATES, CANDIDATES_IN_ALL // (2 * len(forget.states))))
    for states, records in forget.chunks():
        directions = whitening.directions(states)
        likeness = directions.new_zeros(len(states)) if look is None else (directions @ look.T).amax(1)
        parts = 2 * records + _in_prompt(records, forget.prompts)
        chosen = _lowest_of_each(likeness, parts, count)
        found.append(directions[chosen])
        owners.append(parts[chosen.cpu().numpy()])
        likenesses.append(likeness[chosen])
    most_special = torch.cat(likenesses).argsort(stable=True)[:CANDIDATES_IN_ALL].sort().values
    return torch.cat(found)[most_special], np.concatenate(owners)[most_special.cpu().numpy()]


def _in_prompt(records: NDArray[np.int64], prompts: Sequence[int] | None) -> NDArray[np.bool_]:
    """Which rows of whole records, one after another, are of their prompts."""
    places = np.arange(len(records)) - np.searchsorted(records, records)
    return np.ones(len(records), bool) if prompts is None else places < np.asarray(prompts)[records]


def _folds(documents: Sequence[str]) -> NDArray[np.int64]:
    """The fold of each record, 0 to at most `FOLDS - 1`; a document is in one fold."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(documents))}
    return np.array([numbers[name] % FOLDS for name in documents], dtype=np.int64)


def _margins(candidates: Tensor, kept: TokenStates, folds: NDArray[np.int64], whitening: Whitening) -> Tensor:
    """`(n, folds)`: the highest similarity of each candidate to the kept text of each fold; -1 where there is none."""
    highest = candidates.new_full((len(candidates), FOLDS), -1.0)
    for states, records in kept.chunks():
        directions, of = whitening.directions(states), torch.from_numpy(folds[records]).to(candidates.device)
        for fold in range(FOLDS):
            if bool((inside := of == fold).any()):
                for rows in _blocks(len(candidates)):
                    similarity = candidates[rows] @ directions[inside].T
                    highest[rows, fold] = highest[rows, fold].maximum(similarity.amax(1))
    return highest


def _elsewhere(candidates: Tensor, owners: NDArray[np.int64], forget: TokenStates, whitening: Whitening) -> Tensor:
    """`(n,)`: the highest similarity of each candidate to a token of another forget document; -1 if there is one document.

    What many documents say is how such texts are worded, not what they are about. It decides which candidates are taken, not
    their margins: the documents are all to be forgotten.
    """
    numbers = {name: i for i, name in enumerate(dict.fromkeys(forget.documents))}
    of_records = np.array([numbers[name] for name in forget.documents])
    own = torch.from_numpy(of_records[owners // 2]).to(candidates.device)
    highest = candidates.new_full((len(candidates),), -1.0)
    for states, records in forget.chunks():
        directions, of = whitening.directions(states), torch.from_numpy(of_records[records]).to(candidates.device)
        for rows in _blocks(len(candidates)):
            similarity = (candidates[rows] @ directions.T).masked_fill(own[rows, None] == of, -1.0)
            highest[rows] = highest[rows].maximum(similarity.amax(1))
    return highest


def _blocks(count: int) -> Iterator[slice]:
    """All rows, `BLOCK` at a time: memory does not grow with their number."""
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


class _Candidates(NamedTuple):
    """Directions `(n, d)`, owners `(n,)`, similarity to kept text by fold `(n, folds)` and to other forget documents `(n,)`."""

    directions: Tensor
    owners: NDArray[np.int64]
    margins: Tensor
    elsewhere: Tensor

    def chosen(self, margins: Tensor, config: GateConfig) -> Tensor:
        """Rows of the most special candidates of each prompt and answer, most special first, given their margins `(n,)`."""
        rows = _lowest_of_each(margins.maximum(self.elsewhere), self.owners, config.exemplars_per_part)
        return rows[margins[rows] <= 1 - LEAST_GAP]

    def select(self, margins: Tensor, config: GateConfig) -> tuple[Tensor, Tensor]:
        """Exemplars and margins: of the chosen, one for all that are nearly the same."""
        rows = self.chosen(margins, config)
        of = self.directions[rows]
        kept: list[int] = []
        for row in range(len(rows)):
            if len(kept) == config.max_exemplars:
                break
            if not kept or float((of[kept] @ of[row]).max()) <= SAME:
                kept.append(row)
        return of[kept], margins[rows[kept]]


def _lowest_of_each(values: Tensor, owners: NDArray[np.int64], count: int) -> Tensor:
    """Rows of the `count` lowest values of each owner, lowest first over all."""
    order = np.lexsort((values.cpu().numpy(), owners))
    starts = np.searchsorted(owners[order], owners[order])
    rows = torch.from_numpy(order[np.arange(len(order)) - starts < count]).to(values.device)
    return rows[values[rows].argsort(stable=True)]


def _highest_of_each(evidence: Tensor, records: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """`(count,)` highest evidence of each record, minus infinity for those that are not there."""
    highest = np.full(count, -np.inf, np.float32)
    np.maximum.at(highest, records, evidence.cpu().numpy())
    return highest


def _evidence_left_out(
    kept: TokenStates, folds: NDArray[np.int64], candidates: _Candidates, config: GateConfig, whitening: Whitening
) -> NDArray[np.float32]:
    """`(R,)` highest evidence of each kept record by exemplars and margins chosen without its fold; empty if there is one."""
    highest = np.full(len(kept.states), -np.inf, np.float32)
    if len(set(folds.tolist())) < 2:
        return highest[:0]
    chosen = {}
    for fold in set(folds.tolist()):
        others = [other for other in range(FOLDS) if other != fold]
        chosen[fold] = candidates.select(candidates.margins[:, others].amax(1), config)
    for states, records in kept.chunks():
        directions = whitening.directions(states)
        for fold, (exemplars, without) in chosen.items():
            inside = folds[records] == fold
            if inside.any() and len(exemplars):
                evidence = evidence_of(directions[torch.from_numpy(inside).to(directions.device)], exemplars, without)
                highest = np.maximum(highest, _highest_of_each(evidence, records[inside], len(highest)))
    return highest


def _evidence_of_others(
    prompts: Sequence[Tensor], candidates: _Candidates, config: GateConfig, whitening: Whitening
) -> NDArray[np.float32]:
    """`(Fo,)` highest evidence in the prompt of each forget record, by exemplars of other records; empty if there is one."""
    if len(prompts) < 2:
        return np.zeros(0, np.float32)
    margins = candidates.margins.amax(1)
    rows = candidates.chosen(margins, config)
    owner = torch.from_numpy(candidates.owners // 2).to(rows.device)[rows]
    highest = np.full(len(prompts), -np.inf, np.float32)
    for i, prompt in enumerate(prompts):
        others = rows[owner != i]
        if len(others):
            found = evidence_of(whitening.directions(prompt), candidates.directions[others], margins[others])
            highest[i] = float(found.amax())
    return highest
