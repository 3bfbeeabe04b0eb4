"""Gates made by hand, and what they should say by a loop over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tempertilt.guidance.gate import EvidenceGate, Gates, Reader, TurnStarts


def gate_at(
    states: Tensor,
    *,
    mean: Tensor | None = None,
    threshold: float = 0.9,
    weak: float | None = None,
    sure: float | None = None,
) -> EvidenceGate:
    """A gate whose exemplars are these states `(m, d)`, as far from `mean` as they are; no margins."""
    mean = torch.zeros(states.shape[1]) if mean is None else mean
    exemplars = F.normalize(states.float() - mean, dim=-1)
    reader = Reader(mean, torch.eye(states.shape[1]))
    margins = torch.zeros(len(states))
    return EvidenceGate(reader, exemplars, margins, threshold=threshold, weak_threshold=weak, sure_threshold=sure)


def random_gates(size: int, *, layer: int = 1, seed: int = 5, close_after: int = 0, **turns: Any) -> Gates:
    """Both gates with random exemplars: about every third random state opens one of them."""
    generator = torch.Generator().manual_seed(seed)
    asked, said = (torch.randn(6, size, generator=generator) for _ in range(2))
    middle = 1.2 * size**-0.5  # cosines of random states have a deviation of size**-0.5
    starts = TurnStarts(turns["turn_ids"], torch.zeros(1, size), -1.0) if turns else None
    return Gates(
        layer,
        gate_at(asked, threshold=1.5 * middle, weak=middle),
        gate_at(said, threshold=1.3 * middle, weak=middle, sure=1.6 * middle),
        starts,
        close_after,
    )


def gates_for(
    base: Any,
    prompts: Sequence[Sequence[int]],
    *,
    layer: int = 1,
    close_after: int = 0,
    turn_ids: Sequence[int] = (),
    seed: int = 5,
    shares: tuple[float, float] = (0.8, 0.9),
) -> Gates:
    """Both gates of a base model: exemplars from the states of its prompts, thresholds that a tenth of the tokens pass.

    Tokens in `turn_ids` begin a user's turn. `shares` of the tokens are below the weak threshold, and below the other; of those
    that are above it, the output gate is sure of half.
    """
    lower, last = [], []
    with torch.inference_mode():
        for ids in prompts:
            hidden = base(input_ids=torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
            lower.append(hidden[layer][0].float())
            last.append(hidden[-1][0].float())
    generator = torch.Generator().manual_seed(seed)
    made = []
    for rows in (torch.cat(lower), torch.cat(last)):
        chosen = torch.randperm(len(rows), generator=generator)[:6]
        noisy = rows[chosen] + 0.3 * rows.std() * torch.randn(6, rows.shape[1], generator=generator)
        gate = gate_at(noisy.clone(), mean=rows.mean(0).clone())
        gate.weak_threshold, gate.threshold = (_between(gate.evidence(rows), share) for share in shares)
        made.append(gate)
    made[1].sure_threshold = _between(made[1].evidence(rows), (1 + shares[1]) / 2)
    starts = TurnStarts(turn_ids, torch.zeros(1, made[0].hidden_size), -1.0) if turn_ids else None
    return Gates(layer, made[0], made[1], starts, close_after)


def _between(evidence: Tensor, share: float) -> float:
    """A threshold near a quantile, in the widest gap there: no rounding of another engine carries a token over it."""
    values = evidence.sort().values
    near = values[int((share - 0.04) * len(values)) : int((share + 0.04) * len(values))]
    if len(near) < 2:
        return float(values.quantile(share))
    widest = int(near.diff().argmax())
    return float(near[widest] + near[widest + 1]) / 2


def expected_openings(events: Sequence[Sequence[bool]], close_after: int = 0) -> list[float]:
    """The rule of the gates, one token after another: events of each token as in `Gates.events`."""
    opened = near = said = weak = closed = 0
    ever, out = False, []
    for position, (opens, closes, comes_near, says, weakly) in enumerate(events, start=1):
        if closes:
            closed = position
        if opens:
            opened = position
        if comes_near:
            near = position
        if says:
            said = position
        if weakly:
            weak = position
        ever = ever or opened > 0 or (near > 0 and said > 0)
        reasons = [opened, min(near, said), weak if ever else 0]
        latest = max(reasons)
        is_open = latest > closed
        if close_after and not closed and position - latest >= close_after:
            is_open = False
        out.append(float(is_open))
    return out


def longest_beginning(text: Sequence[int], tokens: Sequence[int]) -> int:
    """How many of the first `tokens` a text ends with, by trying all."""
    fits = (k for k in range(len(tokens), -1, -1) if list(text[len(text) - k :]) == list(tokens[:k]) and k <= len(text))
    return next(fits)


def reply_token(text: Sequence[int], header: Sequence[int], answer: Sequence[int], tail: Sequence[int]) -> tuple[int, int]:
    """The token of a reply that is next after a text, and how many have been said."""
    whole = longest_beginning(text, [*header, *answer])
    broken = longest_beginning(text, tail)
    tokens, said = (answer, whole - len(header)) if whole >= len(header) and whole >= broken else (tail, broken)
    return tokens[min(said, len(tokens) - 1)], said
