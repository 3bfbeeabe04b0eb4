"""Fit the gates: choose exemplars of the forget records, their margins, and the thresholds (see `tempertilt.guidance.gate`).

The thresholds follow a rule that needs no reference: evidence of retain records is measured by gates made without their
documents, and a threshold rises until few enough of them open a gate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tempertilt.config.options import Options, option
from tempertilt.errors import DataError
from tempertilt.fitting.exemplars import Candidates, blocks, find_candidates
from tempertilt.fitting.token_states import CHUNK, TokenStates
from tempertilt.guidance.gate import EvidenceGate, Reader, evidence_of

SAMPLE = 6000  # directions of which the projection is made
FOLDS = 5  # of the retain documents
HIGHEST_THRESHOLD = 0.97  # so that an exemplar itself opens


class GateSettings(NamedTuple):
    """How one gate is fitted.

    Attributes:
        size: numbers of a direction, p.
        whitening_rank: directions of the states that are whitened one by one.
        per_part: exemplars that are to cover each prompt and each answer; or, without `cover`, that each may add.
        at_most: exemplars in all.
        threshold, weak_threshold, sure_threshold: see `EvidenceGate`.
        cover: whether exemplars are chosen by what they cover.
    """

    size: int
    whitening_rank: int
    per_part: int
    at_most: int
    threshold: float
    weak_threshold: float | None = None
    sure_threshold: float | None = None
    cover: bool = False


@dataclass(frozen=True)
class GateConfig(Options):
    """How the gates are built."""

    gate: bool = option(False, "temper and tilt only where the text is about what is to be forgotten")
    output_gate: bool = option(True, "also open by what is about to be said")
    variants: int = option(4, "other spellings and settings of each forget prompt that the input gate is made of", ge=0)
    gate_depth: float = option(0.3, "share of the layers below the states that the input gate reads", gt=0, lt=1, advanced=True)
    whitening_rank: int = option(128, "directions whitened one by one; the rest share one variance", ge=1, advanced=True)
    asked_size: int = option(96, "numbers to which a state is projected for the input gate", ge=1, advanced=True)
    said_size: int = option(64, "numbers to which a state is projected for the output gate", ge=1, advanced=True)
    asked_per_part: int = option(
        2, "exemplars of the input gate that are to hear each prompt and each answer", ge=1, advanced=True
    )
    said_per_part: int = option(24, "exemplars that each answer may add to the output gate", ge=1, advanced=True)
    max_asked: int = option(1000, "exemplars of the input gate in all", ge=1, advanced=True)
    max_said: int = option(2000, "exemplars of the output gate in all", ge=1, advanced=True)
    asked_threshold: float = option(
        0.9,
        "evidence at which the input gate opens: 0 is retain text's, 1 an exemplar's; retain text raises or lowers it",
        gt=0,
        lt=1,
    )
    asked_least: float = option(
        0.7,
        "evidence to which that threshold is lowered at most, as long as few retain texts open the gate",
        gt=0,
        lt=1,
        advanced=True,
    )
    near_threshold: float = option(
        0.6, "evidence of the input gate that is enough where the answer comes near the records", gt=0, lt=1, advanced=True
    )
    said_threshold: float = option(
        0.6, "least evidence at which the answer comes near the records; retain text may raise it, up to 0.97", gt=0, lt=1
    )
    sure_threshold: float = option(
        0.75,
        "least evidence of the output gate that is enough whatever was asked; retain text may raise it, up to 0.97; 1 = never",
        gt=0,
        le=1,
    )
    weak_threshold: float = option(
        0.45, "evidence of the output gate that is enough after a turn that was about the records", gt=0, lt=1, advanced=True
    )
    false_open: float = option(0.02, "share of left-out retain records that may open each gate", ge=0, lt=1, advanced=True)
    heard_share: float = option(
        0.95,
        "share of forget prompts that a threshold which retain text raises is still to let open the input gate; 0 = none",
        ge=0,
        lt=1,
        advanced=True,
    )
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
        return GateSettings(*sizes, self.asked_threshold, self.near_threshold, cover=True)

    @property
    def said(self) -> GateSettings:
        """Of the output gate."""
        sizes = (self.said_size, self.whitening_rank, self.said_per_part, self.max_said)
        sure = None if self.sure_threshold == 1 else self.sure_threshold
        return GateSettings(*sizes, self.said_threshold, self.weak_threshold, sure)

    def layer(self, num_layers: int) -> int:
        """The number of decoder layers below the states that the input gate reads, 1 to `num_layers - 1`."""
        return min(num_layers - 1, max(1, round(self.gate_depth * num_layers)))


@dataclass(frozen=True)
class GateFit:
    """A gate and how well it separates what it was not made of.

    Attributes:
        gate: the gate.
        retain_evidence: `(R,)` highest evidence of each retain text, by exemplars and margins without a fifth of the documents,
            its own among them; -inf of texts that are never left out; empty if there is one document.
        prompt_evidence: the same of the text's prompt alone, where it has one.
        heard: `(H,)` highest evidence of each forget prompt by the exemplars of other prompts and answers; empty of gates whose
            exemplars are not chosen by what they cover.
        seconds: wall time.
    """

    gate: EvidenceGate
    retain_evidence: NDArray[np.float32]
    prompt_evidence: NDArray[np.float32]
    heard: NDArray[np.float32]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """JSON-ready."""
        left_out = self.prompt_evidence[np.isfinite(self.prompt_evidence)]
        return {
            "exemplars": len(self.gate.margins),
            "threshold": round(self.gate.threshold, 4),
            "opened": float((left_out > self.gate.threshold).mean()) if len(left_out) else None,
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
    candidates = find_candidates(forget, retain, reader, settings.per_part, cover=settings.cover)
    folds = _folds(retain.documents)
    margins = _margins(candidates.directions, retain, folds, reader)
    highest = margins.amax(1)
    rows = candidates.select(highest, settings.per_part, settings.at_most)
    if not len(rows):
        raise DataError(
            "the gate can't tell the forget records from the retained ones: each of their tokens has its like there. Take out of "
            "the retain records what is to be forgotten; else choose --no-gate, which tempers and tilts everywhere"
        )
    left_out = _evidence_left_out(retain, folds, candidates, margins, settings, reader)
    exemplars, of_exemplars = candidates.directions[rows], highest[rows]
    thresholds = {name: getattr(settings, name) for name in ("threshold", "weak_threshold", "sure_threshold")}
    made = EvidenceGate(reader, exemplars, of_exemplars, **thresholds)
    gate = EvidenceGate.from_tensors(made.tensors("gate"), "gate", **made.settings)  # as it is stored
    return GateFit(gate.to(exemplars.device), *left_out, candidates.heard_otherwise(rows, highest), time.perf_counter() - started)


def raised_threshold(least: float, evidence: NDArray[np.float32], allowed: float) -> float:
    """The lowest threshold from `least` to `HIGHEST_THRESHOLD` that at most a share `allowed` of the evidence `(R,)` is above."""
    if not len(evidence):
        return least
    above = float(np.sort(evidence)[::-1][int(allowed * len(evidence))])
    return max(least, min(HIGHEST_THRESHOLD, above))


def fitted_threshold(usual: float, least: float, evidence: NDArray[np.float32], allowed: float) -> float:
    """`usual`, raised until at most a share `allowed` of the evidence is above; or lowered to `least` while at most half is."""
    if not len(evidence):
        return usual
    return raised_threshold(min(usual, raised_threshold(min(least, usual), evidence, allowed / 2)), evidence, allowed)


def heard_threshold(fitted: float, usual: float, heard: NDArray[np.float32], share: float) -> float:
    """`fitted`, but where it is above `usual` no higher than lets a `share` of the forget prompts `(H,)` open the gate."""
    if fitted <= usual or not len(heard) or not share:
        return fitted
    return max(usual, min(fitted, float(np.quantile(heard, 1 - share))))


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


def _folds(documents: Sequence[str | None]) -> NDArray[np.int64]:
    """The fold of each text, `FOLDS` for texts that are never left out; a document is in one of the folds 0 to `FOLDS - 1`."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(name for name in documents if name is not None))}
    return np.array([FOLDS if name is None else numbers[name] % FOLDS for name in documents], dtype=np.int64)


def _margins(candidates: Tensor, retain: TokenStates, folds: NDArray[np.int64], reader: Reader) -> Tensor:
    """`(n, FOLDS + 1)`: the highest similarity of each candidate to the retained text of each fold; -1 where there is none."""
    highest = candidates.new_full((len(candidates), FOLDS + 1), -1.0)
    for states, texts in retain.chunks():
        directions, fold_of = reader.directions(states), torch.from_numpy(folds[texts]).to(candidates.device)
        for fold in range(FOLDS + 1):
            if bool((inside := fold_of == fold).any()):
                for rows in blocks(len(candidates)):
                    similarity = candidates[rows] @ directions[inside].T
                    highest[rows, fold] = highest[rows, fold].maximum(similarity.amax(1))
    return highest


def _evidence_left_out(
    retain: TokenStates,
    folds: NDArray[np.int64],
    candidates: Candidates,
    margins: Tensor,
    settings: GateSettings,
    reader: Reader,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`(R,)` highest evidence of each retain text, and of its prompt, by exemplars and margins chosen without its fold.

    It is -inf where there is none. A text without a prompt is one. Both are empty if there is one fold, or none.
    """
    whole, asked = (np.full(len(retain.states), -np.inf, np.float32) for _ in range(2))
    present = sorted(set(folds.tolist()) - {FOLDS})
    if len(present) < 2:
        return whole[:0], asked[:0]
    chosen = {}
    for fold in present:
        without = margins[:, [other for other in range(FOLDS + 1) if other != fold]].amax(1)
        rows = candidates.select(without, settings.per_part, settings.at_most)
        chosen[fold] = candidates.directions[rows], without[rows]
    for states, texts in retain.chunks():
        directions, prompts = reader.directions(states), _of_prompts(retain, texts)
        for fold, (exemplars, without) in chosen.items():
            inside = folds[texts] == fold
            if inside.any() and len(exemplars):
                some = directions[torch.from_numpy(inside).to(directions.device)]
                evidence = torch.cat([evidence_of(part, exemplars, without) for part in some.split(CHUNK)]).cpu().numpy()
                np.maximum.at(whole, texts[inside], evidence)
                np.maximum.at(asked, texts[inside], np.where(prompts[inside], evidence, -np.inf))
    return whole, asked


def _of_prompts(part: TokenStates, texts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For tokens of whole texts, whose numbers are given `(N,)`: whether they are of the prompt; all are where there is none."""
    prompts = np.asarray(part.prompts or [0] * len(part.states))[texts]
    places = np.arange(len(texts)) - np.searchsorted(texts, texts)
    return np.asarray((prompts == 0) | (places < prompts))
