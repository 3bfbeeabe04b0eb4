"""The gates: where, in a text, it is about what is to be forgotten. Elsewhere the distribution is the base's, bit for bit.

A token's state `x` is compared with exemplars: states of the forget records that nothing else resembles. Each exemplar has a
margin, the similarity of the nearest token of text that is to be retained:

    f(x) = M (x - mu) / |M (x - mu)|                          M (p, d) whitens and projects
    e    = max_j [ f(x) . f_j - b_j ] / (1 - b_j),            b_j = max over retained text of f(x) . f_j

So the evidence is 0 at the nearest token of retained text and 1 at an exemplar itself. A nearest neighbour with a margin says
"no" to what it has never met; a linear classifier does not.

Two gates read two states. The input gate reads a lower layer: what is asked, in any spelling. The output gate reads the last
state: what is about to be said, whatever the question was. Evidence above a threshold is an event, and so is the start of a
user's turn. The latest events decide:

    open_t =  opened_t > closed_t                               what is asked is about the records, or the answer surely is
              or min(near_t, said_t) > closed_t                 it is nearly so, and the answer comes near the records
              or weak_t > closed_t and some turn was open       the answer comes near them after a turn about them

with `opened_t` (input gate above its threshold, or output gate above its sure one), `near_t` (input gate above its weak one),
`said_t` (output gate above its threshold), `weak_t` (above its weak one) and `closed_t` (start of a turn) the positions of the
latest events up to t, 0 for none. A text without turns is closed again `close_after` tokens after its latest opening.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tempertilt.errors import AdapterError, ConfigError

LEAST_GAP = 0.1  # between an exemplar and the nearest retained token, as a similarity
ROUNDING = 1e-2  # of similarities that are stored in few bits
MOST_TOKENS = 1 << 31  # of a text
UNIT = 127  # 1 in 8 bits
EVENTS = 5  # opened, closed, near, said, weak
TENSORS = ("mean", "reader", "exemplars", "margins")


class Reader(NamedTuple):
    """How states become directions: mean `(d,)`, and `M` `(p, d)`, which whitens and projects."""

    mean: Tensor
    matrix: Tensor

    def directions(self, states: Tensor) -> Tensor:
        """States `(..., d)` of any float type as directions `(..., p)` of length 1, float32."""
        return F.normalize((states.float() - self.mean) @ self.matrix.T, dim=-1)


class EvidenceGate(nn.Module):
    """Exemplars and how states are compared with them; float32, nothing to train.

    Args:
        reader: of states `(d,)`.
        exemplars: `(m, p)`, rows of length 1.
        margins: `(m,)`.
        threshold: evidence above which the gate opens.
        weak_threshold: lower evidence, which counts together with something else; None = never.
        sure_threshold: evidence that is enough by itself, where `threshold` counts together with something else; None = never.

    Raises:
        ConfigError: a threshold is no number.
        AdapterError: the tensors do not fit each other.
    """

    mean: Tensor
    reader: Tensor
    exemplars: Tensor
    margins: Tensor

    def __init__(
        self,
        reader: Reader,
        exemplars: Tensor,
        margins: Tensor,
        *,
        threshold: float,
        weak_threshold: float | None = None,
        sure_threshold: float | None = None,
    ) -> None:
        super().__init__()
        thresholds = threshold, weak_threshold, sure_threshold
        if not all(math.isfinite(one) for one in thresholds if one is not None):
            raise ConfigError(f"the gate's thresholds are {', '.join(map(str, thresholds))}; must be numbers")
        mean, matrix = reader
        d, p, m = len(mean), len(matrix), len(margins)
        if matrix.shape != (p, d) or exemplars.shape != (m, p) or not m:
            shapes = {"mean": mean, "reader": matrix, "exemplars": exemplars, "margins": margins}
            text = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in shapes.items())
            raise AdapterError(f"the gate's tensors do not fit each other: {text}")
        self.threshold = float(threshold)  # of a file it may be a whole number, too large for a tensor's
        self.weak_threshold = None if weak_threshold is None else float(weak_threshold)
        self.sure_threshold = None if sure_threshold is None else float(sure_threshold)
        for name, tensor in zip(TENSORS, (mean, matrix, exemplars, margins)):
            self.register_buffer(name, tensor.detach().float())

    @property
    def hidden_size(self) -> int:
        """`d`."""
        return len(self.mean)

    @property
    def read(self) -> Reader:
        """How states become directions."""
        return Reader(self.mean, self.reader)

    @cached_property
    def reader_digest(self) -> str:
        """Equal for equal readers."""
        return _digest(self.mean, self.reader)

    @property
    def lowest_threshold(self) -> float:
        """Evidence below which nothing happens."""
        return min(value for value in self.settings.values() if value is not None)

    @property
    def settings(self) -> dict[str, float | None]:
        """The thresholds."""
        known = {"threshold": self.threshold, "weak_threshold": self.weak_threshold}
        return known if self.sure_threshold is None else known | {"sure_threshold": self.sure_threshold}

    def evidence(self, states: Tensor) -> Tensor:
        """`e`: states `(..., d)` of any float type to `(...)` float32."""
        return evidence_of(self.read.directions(states), self.exemplars, self.margins)

    def comes_near(self, evidence: Tensor) -> Tensor:
        """Which evidence `(...)` is above the weak threshold, bool `(...)`; none where there is no such threshold."""
        return evidence > (math.inf if self.weak_threshold is None else self.weak_threshold)

    def is_sure(self, evidence: Tensor) -> Tensor:
        """Which evidence `(...)` is above the sure threshold, bool `(...)`; none where there is no such threshold."""
        return evidence > (math.inf if self.sure_threshold is None else self.sure_threshold)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """What an adapter stores, on CPU: float16; exemplars as int8, of which 127 is 1."""
        stored = {name: getattr(self, name).to("cpu", torch.float16).contiguous() for name in TENSORS}
        stored["exemplars"] = quantise(self.exemplars.cpu())
        return {f"{prefix}.{name}": tensor for name, tensor in stored.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], prefix: str, **settings: Any) -> EvidenceGate:
        """The gate that `tensors()` describes.

        Raises:
            AdapterError: a tensor is missing, does not fit, or holds values that are no similarities, means or projections.
        """
        names = [f"{prefix}.{name}" for name in TENSORS]
        if missing := [name for name in names if name not in tensors]:
            raise AdapterError(f"the adapter lacks the tensors {', '.join(missing)} of its gate")
        mean, matrix, exemplars, margins = (tensors[name].float() for name in names)
        if matrix.ndim != 2 or exemplars.ndim != 2 or mean.ndim != 1 or margins.ndim != 1:
            raise AdapterError(
                f"the adapter's tensors {', '.join(names)} have {matrix.ndim} dimensions and the like; must be 1 or 2"
            )
        if broken := [name for name in names if not bool(tensors[name].isfinite().all())]:
            raise AdapterError(f"the adapter's tensors {', '.join(broken)} hold values that are not finite numbers")
        if bool((margins.abs() > 1 + ROUNDING).any()):
            raise AdapterError(f"the adapter's tensor {names[-1]} holds {float(margins.abs().max()):g}; must be from -1 to 1")
        return cls(Reader(mean, matrix), F.normalize(exemplars, dim=-1), margins, **settings)

    @property
    def highest_evidence(self) -> float:
        """The highest evidence that any state has, at most 1."""
        matrix = self.reader.double()
        values, vectors = torch.linalg.eigh(matrix @ matrix.T)
        reachable = vectors[:, values > values.max() * 1e-14]  # no state has a direction outside the matrix's image
        similarities = (self.exemplars.double() @ reachable).norm(dim=-1)
        evidence = as_evidence(similarities, self.margins)
        return min(1.0, float(evidence.max()))


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tensor.shape).encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def quantise(directions: Tensor) -> Tensor:
    """Rows of length 1 as int8, of which `UNIT` is 1."""
    return (directions * UNIT).round().to(torch.int8).contiguous()


def evidence_of(directions: Tensor, exemplars: Tensor, margins: Tensor) -> Tensor:
    """Evidence `(...)` of directions `(..., p)`, given exemplars `(m, p)` and margins `(m,)`."""
    return as_evidence(F.linear(directions, exemplars), margins).amax(-1)


def as_evidence(similarities: Tensor, margins: Tensor) -> Tensor:
    """Similarities to exemplars as evidence: 0 at an exemplar's margin, 1 at itself; both of shapes that go together."""
    return (similarities - margins) / (1 - margins).clamp(min=LEAST_GAP)


def latest_opening(latest: Tensor) -> Tensor:
    """The position `(...)` at which a gate opened last, 0 for none, of latest events `(..., 5)`; it may have closed since."""
    opened, _, near, said, weak = latest.unbind(-1)
    both = torch.minimum(near, said)
    again = torch.where((opened > 0) | (both > 0), weak, 0)  # `both` may be of two turns: about the records all the same
    return torch.stack([opened, both, again]).amax(0)


def gate_value(position: Tensor, latest: Tensor, close_after: int | Tensor) -> Tensor:
    """`g`, 0 or 1, float32; arguments as of `Gates.value`, and the gates' `close_after`, one number or `(...)`."""
    opening, closed = latest_opening(latest), latest[..., 1]
    lasts = (close_after == 0) | (closed > 0) | (position - opening < close_after)
    return ((opening > closed) & lasts).float()


class TurnStarts(nn.Module):
    """Tells where a user's turn begins: a token of the chat template's header, in the state that it has there.

    The token alone is not enough, since a text may hold the word "user", too; and the token before it is not at hand in every
    engine, where a prompt may be read in parts.

    Args:
        token_ids: `(k,)` the token of the header that no other role's header has.
        headers: `(h, p)` directions of that token in headers, by the input gate's reader.
        threshold: similarity above which it is one.

    Raises:
        AdapterError: there are none, or the threshold is no number.
    """

    token_ids: Tensor
    headers: Tensor

    def __init__(self, token_ids: Sequence[int] | Tensor, headers: Tensor, threshold: float) -> None:
        super().__init__()
        if not len(token_ids) or headers.ndim != 2 or not len(headers) or not math.isfinite(threshold):
            raise AdapterError(
                f"the adapter's gate knows turns by {len(token_ids)} tokens, headers {tuple(headers.shape)} and threshold "
                f"{threshold}; must be some of each"
            )
        self.threshold = float(threshold)
        self.register_buffer("token_ids", torch.as_tensor(token_ids, dtype=torch.long))
        self.register_buffer("headers", headers.detach().float())

    def found(self, input_ids: Tensor, directions: Tensor) -> Tensor:
        """Whether each token begins a user's turn: ids `(...)` and directions `(..., p)` to bool `(...)`."""
        listed = torch.isin(input_ids.to(self.token_ids.device), self.token_ids)
        return listed & (F.linear(directions, self.headers).amax(-1) > self.threshold)


@dataclass(frozen=True)
class Evidence:
    """Evidence of new tokens, each by itself.

    Attributes:
        asked: `(...)` by the input gate.
        said: `(...)` by the output gate; None without one.
        turns: `(...)` bool, where a user's turn begins; None where turns are not told.
    """

    asked: Tensor
    said: Tensor | None
    turns: Tensor | None


class Gates(nn.Module):
    """The gates of an adapter and the rule by which they open and close.

    Args:
        layer: number of decoder layers below the states that the input gate reads.
        asked: the input gate.
        said: the output gate, or None.
        turns: where users' turns begin; None = never told.
        close_after: tokens after which an opening ends in a text without turns; 0 = never.

    Raises:
        ConfigError: the layer or `close_after` is out of range.
        AdapterError: the parts do not fit each other.
    """

    def __init__(
        self,
        layer: int,
        asked: EvidenceGate,
        said: EvidenceGate | None = None,
        turns: TurnStarts | None = None,
        close_after: int = 0,
    ) -> None:
        super().__init__()
        if layer < 1 or not 0 <= close_after < MOST_TOKENS:
            raise ConfigError(f"the gate's layer is {layer:g}, close_after {close_after:g}; must be >= 1, and 0 to {MOST_TOKENS}")
        if said is not None and said.hidden_size != asked.hidden_size:
            raise AdapterError(
                f"the gates are for states of {asked.hidden_size} and {said.hidden_size} numbers; must be the same"
            )
        if turns is not None and turns.headers.shape[1] != len(asked.reader):
            size = turns.headers.shape[1]
            raise AdapterError(f"headers of turns have {size} numbers; must be {len(asked.reader)}, as the input gate's reader")
        self.layer, self.close_after = layer, close_after
        self.asked, self.said, self.turns = asked, said, turns

    @property
    def hidden_size(self) -> int:
        """`d`."""
        return self.asked.hidden_size

    @cached_property
    def turns_digest(self) -> tuple[Any, ...]:
        """Equal for gates to which the same tokens begin a user's turn."""
        turns = self.turns
        return () if turns is None else (self.asked.reader_digest, _digest(turns.token_ids, turns.headers), turns.threshold)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but tensors, JSON-ready."""
        return {
            "layer": self.layer,
            "close_after": self.close_after,
            "asked": self.asked.settings,
            "said": self.said.settings if self.said is not None else None,
            "turns": {"threshold": self.turns.threshold} if self.turns is not None else None,
        }

    @property
    def can_open(self) -> bool:
        """Whether there is evidence, of any states, at which they open."""
        if self.asked.highest_evidence > self.asked.threshold:
            return True
        if self.said is None:
            return False
        asked, said = (torch.tensor(gate.highest_evidence) for gate in (self.asked, self.said))
        near = bool(self.asked.comes_near(asked)) and bool(said > self.said.threshold)
        return near or bool(self.said.is_sure(said))

    def evidence(self, last: Tensor, lower: Tensor, input_ids: Tensor | None) -> Evidence:
        """Evidence of new tokens.

        Args:
            last, lower: `(..., d)` last states, and states after `layer` decoder layers.
            input_ids: `(...)`; without them no turn is told.
        """
        device = self.asked.mean.device
        directions = self.asked.read.directions(lower.to(device))
        asked = evidence_of(directions, self.asked.exemplars, self.asked.margins)
        said = None if self.said is None else self.said.evidence(last.to(device))
        turns = None if self.turns is None or input_ids is None else self.turns.found(input_ids, directions)
        return Evidence(asked, said, turns)

    def events(self, evidence: Evidence) -> Tensor:
        """Which events each token is, `(..., 5)` bool: opened, closed, near, said, weak. A token that closes is nothing else."""
        opened = evidence.asked > self.asked.threshold
        never = torch.zeros_like(opened)
        near, said, weak = self.asked.comes_near(evidence.asked), never, never
        if self.said is not None and evidence.said is not None:
            said, weak = evidence.said > self.said.threshold, self.said.comes_near(evidence.said)
            opened = opened | self.said.is_sure(evidence.said)
        closed = never if evidence.turns is None else evidence.turns
        return torch.stack([closed if event is closed else event & ~closed for event in (opened, closed, near, said, weak)], -1)

    def value(self, position: Tensor, latest: Tensor) -> Tensor:
        """`g`, 0 or 1, float32, after each token.

        Args:
            position: `(...)` of the token, counted from 1; where it is within a reply, of the token before the reply.
            latest: `(..., 5)` positions of the latest events of each kind, 0 for none.
        """
        return gate_value(position, latest, self.close_after)

    def tensors(self) -> dict[str, Tensor]:
        """What an adapter stores, on CPU."""
        stored = self.asked.tensors("gate.asked") | (self.said.tensors("gate.said") if self.said is not None else {})
        if self.turns is not None:
            stored["gate.turns.token_ids"] = self.turns.token_ids.to("cpu", torch.int32).contiguous()
            stored["gate.turns.headers"] = quantise(self.turns.headers.cpu())
        return stored

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Gates:
        """The gates that `tensors()` and `settings` describe.

        Raises:
            AdapterError: a tensor or a setting is missing or does not fit, or the gates never open.
        """
        try:
            asked = EvidenceGate.from_tensors(tensors, "gate.asked", **settings["asked"])
            said = EvidenceGate.from_tensors(tensors, "gate.said", **settings["said"]) if settings["said"] else None
            turns = None
            if settings["turns"]:
                headers = F.normalize(tensors["gate.turns.headers"].float(), dim=-1)
                turns = TurnStarts(tensors["gate.turns.token_ids"].long(), headers, settings["turns"]["threshold"])
            gates = cls(settings["layer"], asked, said, turns, settings["close_after"])
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise AdapterError(f"the adapter's gate cannot be read: {type(error).__name__}: {error}") from error
        if not all(type(number) is int for number in (gates.layer, gates.close_after)):
            raise AdapterError(f"the gate's layer is {gates.layer}, close_after {gates.close_after}; must be whole numbers")
        if not gates.can_open:
            raise AdapterError(
                "the adapter's gate never opens, whatever the text: evidence is at most "
                f"{gates.asked.highest_evidence:.3g}, its threshold is {gates.asked.threshold:g}; make the adapter again"
            )
        return gates
