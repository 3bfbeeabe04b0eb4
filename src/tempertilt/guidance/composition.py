"""Several parts in one model: each forgets its own records, and acts where its gates are open.

The rule, position by position:

- Where no part is open, the logits are the base's, bit for bit.
- Where some are open, their weights add, and the largest of their temperatures counts (`tempertilt.guidance.tilt`). Where one
  is open, the logits are what they would be with this part alone, bit for bit.
- If an open part has a reply, the reply's next token is sure. Of several replies it is the one of which the text has most
  already; then that of the part that opened latest; then that of the part that was added first.

Parts may be many and few are open, so what is done for each token must hardly grow with their number. One product of matrices
over the exemplars of all parts, in 8 bits, finds the gates that a token comes near to. Only these are evaluated, each as it
would be alone; a bound on the rounding makes sure that none is missed. Only the heads of open parts run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn

from tempertilt.errors import ConfigError
from tempertilt.guidance.gate import (
    EVENTS,
    LEAST_GAP,
    UNIT,
    Evidence,
    EvidenceGate,
    Gates,
    evidence_of,
    gate_value,
    latest_opening,
    quantise,
)
from tempertilt.guidance.guidance import Context, Guidance, Observation
from tempertilt.guidance.pooling import Follow, Memory
from tempertilt.guidance.reply import FORMS, Reply, reply_logits
from tempertilt.guidance.tilt import composed_logits

CLOSED = 1  # its place among the events of a gate
ROUNDING = 1e-4  # more than that of a similarity in float32
AT_ONCE = 1 << 20  # similarities computed at a time: they stay near the processor


class Screen(nn.Module):
    """The exemplars of all gates with one reader, in 8 bits: finds the gates that may have an event among some tokens.

    For a direction `x` and an exemplar `f`, with `x'` and `f'` their 8-bit rows, `d = sqrt(p) / 254` and `r = |f - f'/127|`:

        x . f  <=  x' . f' / 127^2  +  d + (1 + d) r              since |x - x'/127| <= d

    Args:
        gates: by the number of their part; their readers are equal.
    """

    rows: Tensor
    least: Tensor
    owners: Tensor

    def __init__(self, gates: Mapping[int, EvidenceGate]) -> None:
        super().__init__()
        self.numbers, self.gates = tuple(gates), tuple(gates.values())
        first = self.gates[0]
        for gate in gates.values():  # what is equal need not be held twice
            gate.mean, gate.reader = first.mean, first.reader
        exemplars, margins = (torch.cat([getattr(gate, name) for gate in gates.values()]) for name in ("exemplars", "margins"))
        counts = torch.tensor([len(gate.margins) for gate in gates.values()], device=margins.device)
        lowest = margins.new_tensor([gate.lowest_threshold for gate in gates.values()]).repeat_interleave(counts)
        rows = quantise(exemplars)
        d = math.sqrt(rows.shape[1]) / (2 * UNIT)
        rounding = d + (1 + d) * (exemplars - rows.float() / UNIT).norm(dim=-1) + ROUNDING
        self.register_buffer("rows", rows)
        least = (margins + lowest * (1 - margins).clamp(min=LEAST_GAP) - rounding) * UNIT**2
        self.register_buffer("least", least.floor().to(torch.int32))
        self.register_buffer("owners", torch.arange(len(gates), device=margins.device).repeat_interleave(counts))

    def directions(self, states: Tensor) -> Tensor:
        """States `(..., d)` as directions `(..., p)`, by the reader of all gates."""
        return self.gates[0].read.directions(states)

    def evidence(self, states: Tensor) -> dict[int, Tensor]:
        """Evidence `(...)` of states `(..., d)` by the gates that some of them may come near to; by the number of the part."""
        return self.evidence_of(self.directions(states))

    def evidence_of(self, directions: Tensor) -> dict[int, Tensor]:
        """As `evidence`, of directions `(..., p)`."""
        near = ((self.numbers[i], self.gates[i]) for i in self.near(directions))
        return {number: evidence_of(directions, gate.exemplars, gate.margins) for number, gate in near}

    def near(self, directions: Tensor) -> list[int]:
        """Places of the gates whose lowest threshold may be below the evidence of some of the directions `(..., p)`."""
        rows = quantise(directions).flatten(0, -2)
        blocks = self.rows.split(max(1, AT_ONCE // len(rows)))
        highest = torch.cat([_products(rows, block).amax(0) for block in blocks])
        places: list[int] = self.owners[highest > self.least].unique().tolist()
        return places


def _products(rows: Tensor, exemplars: Tensor) -> Tensor:
    """The exact products `(n, m)` of int8 rows `(n, p)` and `(m, p)`."""
    if rows.device.type == "cpu":
        return torch._int_mm(rows, exemplars.T)
    return rows.float() @ exemplars.float().T


class Composition(nn.Module):
    """Parts by name, in the order of their addition. It stands where a `Guidance` stands, and does not change.

    Args:
        parts: on one device; compositions may share them.

    Raises:
        ConfigError: a part has no gates, or its gates read another layer than the others'.
    """

    close_after: Tensor
    reply_of: Tensor

    def __init__(self, parts: Mapping[str, Guidance]) -> None:
        super().__init__()
        self.names, self.parts = tuple(parts), tuple(parts.values())
        self.gates = tuple(_gates_of(name, part) for name, part in parts.items())
        self.layer = one_layer({name: gates.layer for name, gates in zip(parts, self.gates)})
        self.needs_memory = bool(parts)
        self.asked = _screens({i: gates.asked for i, gates in enumerate(self.gates)})
        self.said = _screens({i: gates.said for i, gates in enumerate(self.gates) if gates.said is not None})
        self.columns = _columns([part.rank for part in self.parts])
        self.turns = _alike((i, gates.turns_digest) for i, gates in enumerate(self.gates) if gates.turns is not None)
        self.screen_of = {i: number for number, screen in enumerate(self.asked) for i in screen.numbers}
        self.modules_held = nn.ModuleList([*self.parts, *self.asked, *self.said])
        replies = {i: part.reply for i, part in enumerate(self.parts) if part.reply is not None}
        alike = _alike((i, str(reply.settings)) for i, reply in replies.items())
        self.replies: tuple[Reply, ...] = tuple(replies[members[0]] for members in alike)
        reply_of = {i: number for number, members in enumerate(alike) for i in members}
        numbers = {
            "close_after": [gates.close_after for gates in self.gates],
            "reply_of": [reply_of.get(i, -1) for i in range(len(parts))],
        }
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(values, device=self.device))

    @property
    def rank(self) -> int:
        """Numbers of a position that are pooled, of all parts."""
        return sum(part.rank for part in self.parts)

    @property
    def gate_shape(self) -> tuple[int, ...]:
        """What the shape of gate values ends with after the positions': a number for each part."""
        return (len(self.parts),)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.gates[0].asked.mean.device if self.gates else torch.device("cpu")

    def check_fits(self, hidden_size: int, vocab_size: int, num_layers: int) -> None:
        """Raise `ConfigError` or `AdapterError` unless every part fits a base model of this shape."""
        for part in self.parts:
            part.check_fits(hidden_size, vocab_size, num_layers)

    # --- what is remembered -----------------------------------------------------------------------------------------

    def observe(self, last: Tensor, lower: Tensor | None, input_ids: Tensor | None = None) -> Observation:
        """What to remember of new positions; arguments as of `Guidance.observe`. Events are `(..., 5 P)`."""
        assert lower is not None, "the gates read lower states"
        last, lower = last.to(self.device), lower.to(self.device)
        pooled = [self.parts[number].head.project(last) for number in self.columns]
        projected = torch.cat(pooled, -1) if pooled else last.new_zeros(*last.shape[:-1], 0, dtype=torch.float32)
        return Observation(projected, self._events(last, lower, input_ids).flatten(-2), None)

    def _events(self, last: Tensor, lower: Tensor, input_ids: Tensor | None) -> Tensor:
        """`(..., P, 5)` bool; of a part that no token comes near to, only where it is closed is looked at."""
        shape = last.shape[:-1]
        events = torch.zeros(*shape, len(self.gates), EVENTS, dtype=torch.bool, device=self.device)
        directions = [screen.directions(lower) for screen in self.asked]
        asked = _joined(map(Screen.evidence_of, self.asked, directions))
        said = _joined(screen.evidence(last) for screen in self.said)
        turns = self._turn_starts(directions, input_ids)
        for members, starts in turns:
            if bool(starts.any()):
                events[..., members, CLOSED] = starts.unsqueeze(-1)
        for number in asked.keys() | said.keys():
            far = torch.full(shape, -math.inf, device=self.device)
            closed = next((starts for members, starts in turns if number in members), None)
            evidence = Evidence(asked.get(number, far), said.get(number), closed)
            events[..., number, :] = self.gates[number].events(evidence)
        return events

    def _turn_starts(self, directions: Sequence[Tensor], input_ids: Tensor | None) -> list[tuple[list[int], Tensor]]:
        """Where a user's turn begins, `(...)` bool, with the numbers of the parts to which it does.

        Args:
            directions: by the reader of each screen of input gates.
        """
        if input_ids is None:
            return []
        return [
            (members, turns.found(input_ids, directions[self.screen_of[members[0]]]))
            for members in self.turns
            if (turns := self.gates[members[0]].turns) is not None
        ]

    def follows(self, input_ids: Tensor | None) -> tuple[Follow, ...]:
        """What the memory needs to count the tokens of each different reply among new `input_ids` `(B, n)`."""
        return tuple(partial(reply.follow, input_ids) for reply in self.replies)

    def read(self, memory: Memory) -> Context:
        """What a memory says of its positions: the gates' values `(..., P)`, and the reply of the part that speaks."""
        latest, position = memory.latest.unflatten(-1, (len(self.gates), EVENTS)), memory.position.unsqueeze(-1)
        if memory.ends is None:
            return Context(memory.means, gate_value(position, latest, self.close_after), None)
        ends = memory.ends.split(FORMS, -1)
        has_reply, own = self.reply_of >= 0, self.reply_of.clamp(min=0)
        said, tokens = (
            torch.stack([each(end) for each, end in zip(functions, ends)], -1)[..., own]
            for functions in ([reply.said for reply in self.replies], [reply.next_tokens for reply in self.replies])
        )
        said = said * has_reply
        gate = gate_value(position - said, latest, self.close_after)
        speaks = (gate > 0) & has_reply
        for order in (said, latest_opening(latest)):
            order = order.masked_fill(~speaks, -1)
            speaks = speaks & (order == order.amax(-1, keepdim=True))
        first = speaks.float().argmax(-1, keepdim=True)
        return Context(memory.means, gate, torch.where(speaks.any(-1), tokens.gather(-1, first)[..., 0], -1))

    # --- what becomes of the logits ---------------------------------------------------------------------------------

    def guide(
        self, logits: Tensor, last: Tensor | None, pooled: Tensor | None, gate: Tensor | None, *, reply: Tensor | None = None
    ) -> Tensor:
        """Guided logits `(..., V)` float32; arguments as of `Guidance.guide`, but `pooled` and `gate` as `read` gives them."""
        if gate is None:
            return logits
        terms = []
        for number in (gate > 0).flatten(0, -2).any(0).nonzero()[:, 0].tolist():
            part = self.parts[number]
            if not part.tilt.is_neutral:
                own = pooled[..., self.columns[number]].contiguous() if pooled is not None and part.rank else None
                terms.append(part.terms(logits, last, own, gate[..., number]))
        guided = composed_logits(logits, terms) if terms else logits.float()
        return guided if reply is None else reply_logits(guided, reply)


def _gates_of(name: str, part: Guidance) -> Gates:
    if part.gates is None:
        raise ConfigError(f"part {name!r} has no gates and would act everywhere; fit it with --gate")
    return part.gates


def one_layer(layer_of: Mapping[str, int | None]) -> int | None:
    """The number of layers below the states that gates read, of several by name; None where there are no gates.

    Raises:
        ConfigError: they differ.
    """
    layers: dict[int, str] = {}
    for name, layer in layer_of.items():
        if layer is not None:
            layers.setdefault(layer, name)
    if len(layers) > 1:
        text = ", ".join(f"those of {name!r} after {layer}" for layer, name in sorted(layers.items()))
        raise ConfigError(f"gates read states after different numbers of layers ({text}); must be one: fit with one --gate-depth")
    return next(iter(layers), None)


def _columns(ranks: Sequence[int]) -> dict[int, slice]:
    """Where among the pooled projections of all parts those of each are, by its number; none where it does not pool."""
    stops = list(accumulate(ranks))
    return {number: slice(stop - rank, stop) for number, (rank, stop) in enumerate(zip(ranks, stops)) if rank}


def _alike(keys: Iterable[tuple[int, Hashable]]) -> list[list[int]]:
    """Numbers whose keys are equal, together."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for number, key in keys:
        groups[key].append(number)
    return list(groups.values())


def _screens(gates: Mapping[int, EvidenceGate]) -> tuple[Screen, ...]:
    groups = _alike((number, gate.reader_digest) for number, gate in gates.items())
    return tuple(Screen({number: gates[number] for number in members}) for members in groups)


def _joined(parts: Iterable[Mapping[int, Tensor]]) -> dict[int, Tensor]:
    return {number: evidence for part in parts for number, evidence in part.items()}
