"""The models of one engine: each token is observed, and each row guided, by the guidance of the model that its request names.

An engine's batch holds tokens of many requests. Those of one model are taken together, so what is done for a token does not grow
with the number of models, and what is remembered of it neither: a row of the memory is as wide as the widest model needs.
With one model there is nothing to choose, and no row is copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tempertilt.errors import ConfigError
from tempertilt.guidance.composition import Composition, one_layer
from tempertilt.guidance.gate import EVENTS
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.pooling import Memory
from tempertilt.guidance.reply import FORMS, Reply, reply_logits
from tempertilt.integrations.vllm.options import SETTINGS
from tempertilt.models.adapter import Adapter
from tempertilt.models.replies import GUESS

NOBODY = -1  # the number of a model that the engine does not have
MOST_NAMES = 4096  # that are remembered
Rows = slice | Tensor
ALL = slice(None)
Group = tuple[Guidance | Composition, Rows]
"""A model, and the rows of a batch that are its own."""


class Width(NamedTuple):
    """Numbers that a model needs of each token.

    Attributes:
        rank: pooled.
        kinds: of events.
        gates: values of gates.
        ends: how much of each reply a text ends with.
    """

    rank: int
    kinds: int
    gates: int
    ends: int


class Choices:
    """Guidances by the names of models, None for the base.

    Args:
        guidances: at least one that is not None.
        end: the token with which an answer ends, for requests that name no model of the engine; None = the model has none.

    Raises:
        ConfigError: gates read after different numbers of layers.
    """

    def __init__(self, guidances: Mapping[str, Guidance | Composition | None], end: int | None = None) -> None:
        self._numbers = {name: number for number, name in enumerate(guidances)}
        self._guidances: list[Guidance | Composition | None] = list(guidances.values())
        self._end = end
        self.chooses = list(guidances) != [""]
        widths = [width_of(each) for each in self._guidances if each is not None]
        self.width = Width(*(max(sizes) for sizes in zip(*widths)))
        self.layer = one_layer({name: each.layer for name, each in guidances.items() if each is not None})
        self.needs_memory = any(each.needs_memory for each in self._guidances if each is not None)

    @property
    def guidances(self) -> list[Guidance | Composition]:
        """All but the base."""
        return [each for each in self._guidances if each is not None]

    def number(self, name: str | None) -> int:
        """The number of a model, `NOBODY` where the engine has none of that name; then none can be added by it either.

        What the engine's cache holds of the request is as if the model did nothing: a model of that name would go on from it.
        """
        if name and name not in self._numbers and len(self._numbers) < MOST_NAMES:
            self._numbers[name] = NOBODY
        return self._numbers.get(name or "", NOBODY)

    def add(self, name: str, guidance: Guidance | Composition) -> None:
        """Have one more model.

        Raises:
            ConfigError: a model had the name or a request has named it before, or the guidance needs more room than the engine's
                memory has.
        """
        if not self.chooses:
            raise ConfigError("the engine has one model, whose name no request gives; start it with models=")
        if not name or name in self._numbers or len(self._numbers) >= MOST_NAMES:
            raise ConfigError(f"a model of this engine has or had the name {name!r}, or a request gave it; must be another one")
        needed = width_of(guidance)
        if any(more > room for more, room in zip(needed, self.width)) or guidance.layer not in (None, self.layer):
            raise ConfigError(
                f"model {name!r} needs {needed} with gates after {guidance.layer} layers; the engine was started with room for "
                f"{self.width} with gates after {self.layer}: start it anew with this model"
            )
        self._numbers[name] = len(self._guidances)
        self._guidances.append(guidance)

    def remove(self, name: str) -> None:
        """Forget a model: requests that name it get empty answers from now on. `ConfigError` if there is none of that name."""
        if self._numbers.get(name, NOBODY) == NOBODY:
            there = ", ".join(known for known, number in self._numbers.items() if number != NOBODY)
            raise ConfigError(f"the engine has no model {name!r}; must be one of {there}")
        self._numbers[name] = NOBODY

    def which(self, requests: Sequence[tuple[str | None, int]], count: int, device: torch.device) -> Tensor:
        """The number of the model of each token of a batch, `(count,)` int64; padding after the requests' tokens is nobody's.

        Args:
            requests: the name of its model, and how many tokens it has in the batch, of each request in the batch's order.
        """
        numbers = torch.tensor([self.number(name) for name, _ in requests], dtype=torch.long)
        each = numbers.repeat_interleave(torch.tensor([tokens for _, tokens in requests], dtype=torch.long))[:count]
        return torch.cat([each, each.new_full((count - len(each),), NOBODY)]).to(device)

    def groups(self, which: Tensor | None) -> list[Group]:
        """The models of some rows `(n,)`, and their rows; those of the base are left out. None: all are of the only model."""
        if which is None:
            [only] = self.guidances
            return [(only, ALL)]
        present = which.unique().tolist()
        chosen = ((number, None if number == NOBODY else self._guidances[number]) for number in present)
        return [
            (guidance, ALL if len(present) == 1 else (which == number).nonzero()[:, 0])
            for number, guidance in chosen
            if guidance is not None
        ]

    # --- what is remembered -----------------------------------------------------------------------------------------

    def observe(
        self, last: Tensor, lower: Tensor | None, input_ids: Tensor | None, groups: Sequence[Group]
    ) -> tuple[Tensor, Tensor]:
        """Projections `(n, rank)` float32 and events `(n, kinds)` bool of new tokens; see `Guidance.observe`.

        Args:
            last, lower: `(n, d)`.
            input_ids: `(n,)`.
            groups: their models, as `groups` gives them.
        """
        projected = last.new_zeros(len(last), self.width.rank, dtype=torch.float32)
        events = last.new_zeros(len(last), self.width.kinds, dtype=torch.bool)
        for guidance, rows in groups:
            new = guidance.observe(*(None if each is None else each[rows] for each in (last, lower, input_ids)))  # type: ignore[arg-type]
            _put(projected, rows, new.projected)
            if new.events is not None:
                _put(events, rows, new.events)
        return projected, events

    def read(self, means: Tensor, latest: Tensor, position: Tensor, groups: Sequence[Group]) -> Tensor:
        """The gates' values `(n, gates)` float32 after each token, of means `(n, rank)` and latest events `(n, kinds)`."""
        gates = means.new_zeros(len(means), self.width.gates)
        for guidance, rows in groups:
            gate = guidance.read(_memory(guidance, means[rows], latest[rows], position[rows])).gate
            if gate is not None:
                _put(gates, rows, gate.reshape(len(gate), -1))
        return gates

    def follow(self, tokens: Tensor, before: Tensor, groups: Sequence[Group]) -> Tensor:
        """How much of each reply `(B, ends)` texts end with after more tokens `(B, n)`, of the same `before` them."""
        tokens, ends = tokens.to(before.device), before.new_zeros(before.shape)
        for guidance, rows in groups:
            new = tokens[rows]
            counts = zip(guidance.follows(new), before[rows].split(FORMS, -1))
            found = [follow(torch.ones_like(new), own)[:, -1] for follow, own in counts]
            if found:
                _put(ends, rows, torch.cat(found, -1))
        return ends

    def replies(self, latest: Tensor, position: Tensor, ends: Tensor, groups: Sequence[Group]) -> Tensor:
        """The token that a reply goes on with in each row `(n,)`, -1 for none; arguments as of `read` and `follow`."""
        tokens = torch.full_like(position, -1)
        means = latest.new_zeros(len(latest), self.width.rank)
        for guidance, rows in groups:
            if numbers := width_of(guidance).ends:
                own = (means[rows], latest[rows], position[rows], ends[rows][:, :numbers])
                reply = guidance.read(_memory(guidance, *own)).reply
                assert reply is not None, "there is a reply"
                tokens[rows] = reply.to(tokens.dtype)
        return tokens

    # --- what becomes of the logits ---------------------------------------------------------------------------------

    def guide(self, logits: Tensor, states: Tensor, pooled: Tensor | None, gates: Tensor | None, which: Tensor | None) -> Tensor:
        """Guided logits `(n, V)`; where every gate is closed and nobody's row is among them, the base's own, as they are.

        A row of a model that the engine does not have says the end of an answer, and nothing of the base.
        """
        guided = logits
        for guidance, rows in self.groups(which):
            shape = guidance.gate_shape
            gate = None if shape is None or gates is None else gates[rows][:, : math.prod(shape)].reshape(-1, *shape)
            # free to see on CPUs; elsewhere it would wait for the device
            if gate is not None and gate.device.type == "cpu" and not bool(gate.any()):
                continue
            own = None if pooled is None or not guidance.rank else pooled[rows][:, : guidance.rank].contiguous()
            new = guidance.guide(logits[rows], states[rows], own, gate)
            if isinstance(rows, slice):
                guided = new
            else:
                guided = logits.to(torch.float32, copy=True) if guided is logits else guided
                guided[rows] = new.to(guided.dtype)
        if which is not None and bool((nobody := which == NOBODY).any()):
            guided = torch.where(nobody[:, None], 0.0, guided.float())
            if self._end is not None:
                guided = reply_logits(guided, torch.where(nobody, self._end, -1))
        return guided


def width_of(guidance: Guidance | Composition) -> Width:
    """What a model needs of each token."""
    shape = guidance.gate_shape
    gates = 0 if shape is None else math.prod(shape)
    return Width(guidance.rank, EVENTS * gates, gates, FORMS * len(guidance.follows(None)))


def _memory(
    guidance: Guidance | Composition, means: Tensor, latest: Tensor, position: Tensor, ends: Tensor | None = None
) -> Memory:
    width = width_of(guidance)
    return Memory(means[:, : width.rank], position, latest[:, : width.kinds], ends)


def _put(into: Tensor, rows: Rows, values: Tensor) -> None:
    """Write values `(n, k)` in the first `k` columns of some rows."""
    if values.shape[1]:
        into[rows, : values.shape[1]] = values.to(into.dtype)


def load_guidance(options: Mapping[str, Any], load: Callable[[str], Adapter]) -> Guidance | Composition | None:
    """The guidance of a model by its options: of one adapter with the settings that the engine was given instead of its own,
    of several parts, or None for the base.

    Args:
        options: as `models_of` gives them.
        load: an adapter from its directory.

    Raises:
        ConfigError: a reply stands beside a neutral tilt: the engine's log-probabilities would be the base's.
    """
    if not options:
        return None
    guidance: Guidance | Composition
    if "adapters" in options:
        guidance = Composition({name: load(place).guidance for name, place in options["adapters"].items()})
    else:
        guidance = _one_guidance(options, load(options["adapter"]))
    for part in guidance.parts if isinstance(guidance, Composition) else [guidance]:
        if part.reply is not None and part.tilt.is_neutral:
            raise ConfigError("an adapter with a reply has temperature 1 and guidance_scale 0; must tilt, or have no reply")
    return guidance.requires_grad_(False)


def _one_guidance(options: Mapping[str, Any], adapter: Adapter) -> Guidance:
    guidance, reply = adapter.guidance, options.get("reply")
    given = {name: options[name] for name in SETTINGS if options.get(name) is not None}
    guidance.tilt = replace(guidance.tilt, **given)
    if reply is not None:
        guidance.set_reply(None if reply == GUESS else Reply.from_settings(reply))
    return guidance
