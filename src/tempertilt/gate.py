"""The evidence gate: where, in a text, it is about what is to be forgotten; elsewhere the law is the base's, bit for bit.

A token's state `x_t`, read between two lower layers of the model, is compared with exemplars: states of tokens of the forget
records that nothing else resembles (a name, a date, a title). Each exemplar has a margin, the similarity of the nearest token of
text that is to be kept:

    e_t = max_j [ cos(W (x_t - mu), f_j) - b_j ],     b_j = max over kept text of cos(W (x - mu), f_j)
    E_t = max over i <= t of e_i                       evidence so far, prompt included; it never falls back
    g_t = clamp((E_t - threshold) / width, 0, 1)       0: the base's own law; 1: tempered and tilted in full

`W` whitens the states by a covariance of low rank plus a multiple of the identity (probabilistic PCA; Tipping, Bishop 1999), so
that an adapter holds few numbers. A nearest neighbour with a margin says "no" to what it has never seen; a linear classifier on
pooled states does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tempertilt.errors import AdapterError, ConfigError, DataError

CHUNK = 8192  # states compared at a time
LOOKED_AT, LOOK = 512, 8  # kept records, and every so many of their tokens, in a first look for what is generic
CANDIDATES = 8  # tokens of a prompt and of an answer that remain after it
FOLDS = 5  # of the kept documents
LEAST_EVIDENCE = 0.2  # below it, a gate would open on anything
SAME = 0.9  # of two exemplars this similar, one is enough
NAMES = ("gate.mean", "gate.basis", "gate.shrink", "gate.exemplars", "gate.margins")


@dataclass(frozen=True)
class GateConfig:
    """How the evidence gate is built."""

    gate: bool = field(default=False, metadata={"help": "temper and tilt only where the text is about what is to be forgotten"})
    gate_depth: float = field(default=0.2, metadata={"help": "share of the layers below the states that the gate reads"})
    whitening_rank: int = field(default=128, metadata={"help": "directions whitened one by one; the rest share one variance"})
    exemplars_per_part: int = field(default=2, metadata={"help": "exemplars that each prompt and each answer may add"})
    max_exemplars: int = field(default=800, metadata={"help": "exemplars in all"})
    missed: float = field(
        default=0.05, metadata={"help": "share of forget prompts whose evidence is disregarded when the threshold is set"}
    )
    gate_slack: float = field(
        default=0.9, metadata={"help": "the threshold, as a share of the evidence that the other forget prompts reach"}
    )
    gate_width: float = field(default=0.02, metadata={"help": "evidence above the threshold at which the gate is fully open"})

    def __post_init__(self) -> None:
        if not 0 < self.gate_depth < 1:
            raise ConfigError(f"gate_depth is {self.gate_depth}; valid is a number in (0, 1)")
        for name in ("whitening_rank", "exemplars_per_part", "max_exemplars"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; valid is a whole number >= 1")
        if not 0 <= self.missed < 1 or not 0 < self.gate_slack < 1 or not self.gate_width > 0:
            raise ConfigError(
                f"missed is {self.missed}, gate_slack {self.gate_slack}, gate_width {self.gate_width}; valid are numbers in "
                "[0, 1), in (0, 1) and > 0"
            )

    def layer(self, num_layers: int) -> int:
        """The number of decoder layers below the states that are read, 1 to `num_layers - 1`."""
        return min(num_layers - 1, max(1, round(self.gate_depth * num_layers)))


class Whitening(NamedTuple):
    """Mean `(d,)`, orthonormal basis `(k, d)` of the directions of largest variance, how much of each is taken away `(k,)`."""

    mean: Tensor
    basis: Tensor
    shrink: Tensor

    def directions(self, states: Tensor) -> Tensor:
        """Whitened states `(..., d)` of any float type as rows of length 1, float32."""
        centred = states.float() - self.mean
        return F.normalize(centred - (centred @ self.basis.T * self.shrink) @ self.basis, dim=-1)


class EvidenceGate(nn.Module):
    """Exemplars and how states are compared with them; float32, nothing to train.

    Args:
        whitening: of states `(d,)`.
        exemplars: `(m, d)`, rows of length 1.
        margins: `(m,)`.
        layer: number of decoder layers below the states.
        threshold, width: of the evidence, as in the formula above.
    """

    mean: Tensor
    basis: Tensor
    shrink: Tensor
    exemplars: Tensor
    margins: Tensor

    def __init__(
        self, whitening: Whitening, exemplars: Tensor, margins: Tensor, *, layer: int, threshold: float, width: float
    ) -> None:
        super().__init__()
        if layer < 1 or not width > 0 or not math.isfinite(threshold):
            raise ConfigError(f"gate layer is {layer}, threshold {threshold}, width {width}; valid are >= 1, a number, > 0")
        mean, basis, shrink = whitening
        d, k, m = len(mean), len(shrink), len(margins)
        if basis.shape != (k, d) or exemplars.shape != (m, d) or not m:
            raise AdapterError(
                f"the gate's tensors do not fit: mean {tuple(mean.shape)}, basis {tuple(basis.shape)}, shrink "
                f"{tuple(shrink.shape)}, exemplars {tuple(exemplars.shape)}, margins {tuple(margins.shape)}"
            )
        self.layer, self.threshold, self.width = layer, threshold, width
        for name, tensor in zip(NAMES, (mean, basis, shrink, exemplars, margins)):
            self.register_buffer(name.removeprefix("gate."), tensor.detach().float())

    @property
    def hidden_size(self) -> int:
        """`d`."""
        return len(self.mean)

    def evidence(self, states: Tensor) -> Tensor:
        """`e`: states `(..., d)` of any float type to `(...)` float32."""
        directions = Whitening(self.mean, self.basis, self.shrink).directions(states)
        return (F.linear(directions, self.exemplars) - self.margins).amax(-1)

    def openness(self, evidence: Tensor) -> Tensor:
        """`g` in [0, 1] of evidence of any shape; exactly 0 up to the threshold."""
        return ((evidence - self.threshold) / self.width).clamp(0.0, 1.0)

    def tensors(self) -> dict[str, Tensor]:
        """What an adapter stores, float16, on CPU."""
        return {name: getattr(self, name[5:]).to("cpu", torch.float16).contiguous() for name in NAMES}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], *, layer: int, threshold: float, width: float) -> EvidenceGate:
        """The gate that `tensors()` describes; `AdapterError` if a tensor is missing or does not fit."""
        if missing := [name for name in NAMES if name not in tensors]:
            raise AdapterError(f"the adapter lacks the tensors {', '.join(missing)} of its gate")
        mean, basis, shrink, exemplars, margins = (tensors[name].float() for name in NAMES)
        return cls(Whitening(mean, basis, shrink), exemplars, margins, layer=layer, threshold=threshold, width=width)


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
    """Choose exemplars of the forget records, their margins, and the threshold.

    The threshold lies a little (`gate_slack`) below the evidence that the forget prompts themselves reach, all but a share
    `missed` of them: what is to be forgotten comes first. How often kept text opens the gate is then measured under gates made
    without a fifth of the documents, theirs among them.

    Args:
        forget, kept: states after `layer` decoder layers; on one device.
        layer: for the gate to remember.

    Raises:
        DataError: nothing tells the forget records from the kept ones.
    """
    started = time.perf_counter()
    whitening = fit_whitening([forget, kept], config.whitening_rank)
    candidates, owners = _candidates(forget, kept, whitening)
    folds = _folds(kept.documents)
    margins = _margins(candidates, kept, folds, whitening)
    exemplars, of_exemplars = _select(candidates, owners, margins.amax(1), config)
    gate = EvidenceGate(whitening, exemplars, of_exemplars, layer=layer, threshold=0.0, width=config.gate_width)
    prompts = forget.states if forget.prompts is None else [rows[:n] for rows, n in zip(forget.states, forget.prompts)]
    own = np.array([float(gate.evidence(rows).amax()) for rows in prompts], np.float32)
    reached = float(np.quantile(own, config.missed))
    if reached < LEAST_EVIDENCE:
        raise DataError(
            f"the gate can't tell the forget records from what is kept: {config.missed:.0%} of the forget prompts reach an "
            f"evidence of {reached:.2f} or less, valid is {LEAST_EVIDENCE}. If the same text is in both, mend them; if few "
            "prompts name what they ask for, raise --missed; else choose --no-gate, which tempers and tilts everywhere"
        )
    gate.threshold = config.gate_slack * reached
    return GateFit(
        gate,
        _evidence_left_out(kept, folds, candidates, owners, margins, config, whitening),
        own,
        _evidence_of_others(prompts, candidates, margins.amax(1), owners, config, whitening),
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

    Their owner is twice the number of the record, and 1 more in its prompt: `CANDIDATES` of the prompt and as many of the answer.
    """
    rows = [states[::LOOK].float() for states in kept.states[:LOOKED_AT]]
    look = whitening.directions(torch.cat(rows)) if rows else None
    found, owners = [], []
    for states, records in forget.chunks():
        directions = whitening.directions(states)
        likeness = directions.new_zeros(len(states)) if look is None else (directions @ look.T).amax(1)
        parts = 2 * records + _in_prompt(records, forget.prompts)
        chosen = _lowest_of_each(likeness, parts, CANDIDATES)
        found.append(directions[chosen])
        owners.append(parts[chosen.cpu().numpy()])
    return torch.cat(found), np.concatenate(owners)


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
                highest[:, fold] = highest[:, fold].maximum((candidates @ directions[inside].T).amax(1))
    return highest


def _select(candidates: Tensor, owners: NDArray[np.int64], margins: Tensor, config: GateConfig) -> tuple[Tensor, Tensor]:
    """Exemplars and margins: the most special candidates of each prompt and answer, one for all that are nearly the same."""
    rows = _lowest_of_each(margins, owners, config.exemplars_per_part)
    similarity = candidates[rows] @ candidates[rows].T
    chosen: list[int] = []
    for row in range(len(rows)):
        if len(chosen) < config.max_exemplars and not (chosen and float(similarity[row, chosen].max()) > SAME):
            chosen.append(row)
    return candidates[rows[chosen]], margins[rows[chosen]]


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
    kept: TokenStates,
    folds: NDArray[np.int64],
    candidates: Tensor,
    owners: NDArray[np.int64],
    margins: Tensor,
    config: GateConfig,
    whitening: Whitening,
) -> NDArray[np.float32]:
    """`(R,)` highest evidence of each kept record by exemplars and margins chosen without its fold; empty if there is one."""
    highest = np.full(len(kept.states), -np.inf, np.float32)
    if len(set(folds.tolist())) < 2:
        return highest[:0]
    chosen = {}
    for fold in set(folds.tolist()):
        others = [other for other in range(FOLDS) if other != fold]
        chosen[fold] = _select(candidates, owners, margins[:, others].amax(1), config)
    for states, records in kept.chunks():
        directions = whitening.directions(states)
        for fold, (exemplars, without) in chosen.items():
            inside = folds[records] == fold
            if inside.any():
                evidence = (directions[torch.from_numpy(inside).to(directions.device)] @ exemplars.T - without).amax(1)
                highest = np.maximum(highest, _highest_of_each(evidence, records[inside], len(highest)))
    return highest


def _evidence_of_others(
    prompts: Sequence[Tensor],
    candidates: Tensor,
    margins: Tensor,
    owners: NDArray[np.int64],
    config: GateConfig,
    whitening: Whitening,
) -> NDArray[np.float32]:
    """`(Fo,)` highest evidence in the prompt of each forget record, by exemplars of other records; empty if there is one."""
    if len(prompts) < 2:
        return np.zeros(0, np.float32)
    rows = _lowest_of_each(margins, owners, config.exemplars_per_part)
    owner = torch.from_numpy(owners // 2).to(rows.device)[rows]
    exemplars, margins = candidates[rows], margins[rows]
    highest = np.full(len(prompts), -np.inf, np.float32)
    for i, prompt in enumerate(prompts):
        similarity = whitening.directions(prompt) @ exemplars.T - margins
        highest[i] = float(similarity.masked_fill(owner == i, -math.inf).amax())
    return highest
