"""The guided distribution of several parts by its definition: loops over tokens and parts, no cache, no code of the package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from support.gates import reply_token
from tempertilt.guidance.gate import EvidenceGate
from tempertilt.guidance.guidance import Guidance


class PartByHand:
    """One part: what it has heard so far of one text."""

    def __init__(self, part: Guidance) -> None:
        self.part = part
        self.latest = dict.fromkeys(("opened", "closed", "near", "said", "weak"), 0)

    def hear(self, position: int, token: int, lower: Tensor, last: Tensor) -> None:
        """One more token, counted from 1, with its states `(d,)`."""
        gates = self.part.gates
        assert gates is not None
        asked = evidence(gates.asked, lower)
        said = -math.inf if gates.said is None else evidence(gates.said, last)
        if gates.turns is not None and token in gates.turns.token_ids.tolist():
            self.latest["closed"] = position
            return
        bounds = {"opened": (asked, gates.asked.threshold), "near": (asked, gates.asked.weak_threshold)}
        if gates.said is not None:
            bounds |= {"said": (said, gates.said.threshold), "weak": (said, gates.said.weak_threshold)}
            bounds |= {"sure": (said, gates.said.sure_threshold)}
        for name, (value, bound) in bounds.items():
            if bound is not None and value > bound:
                self.latest["opened" if name == "sure" else name] = position

    def opening(self) -> int:
        """The position of the latest opening."""
        now = self.latest
        both = min(now["near"], now["said"])
        return max(now["opened"], both, now["weak"] if now["opened"] or both else 0)

    def reply(self, text: Sequence[int]) -> tuple[int, int]:
        """The token of its reply that is next, and how many have been said; -1 and 0 without one."""
        if self.part.reply is None:
            return -1, 0
        parts = self.part.reply.settings
        return reply_token(text, parts["header"], parts["answer"], parts["tail"])

    def is_open(self, text: Sequence[int]) -> bool:
        gates = self.part.gates
        assert gates is not None
        now, opening = len(text) - self.reply(text)[1], self.opening()
        lasts = not gates.close_after or self.latest["closed"] > 0 or now - opening < gates.close_after
        return opening > self.latest["closed"] and lasts


def evidence(gate: EvidenceGate, state: Tensor) -> float:
    """Evidence of a state `(d,)`, exemplar by exemplar."""
    x = gate.reader.double() @ (state.double() - gate.mean.double())
    x = x / x.norm()
    values = []
    for exemplar, margin in zip(gate.exemplars.double(), gate.margins.double()):
        values.append((float(x @ exemplar) - float(margin)) / max(0.1, 1 - float(margin)))
    return max(values)


class ComposedOracle:
    """Log-probabilities of the next token under parts by name, from whole unpadded sequences."""

    def __init__(self, base: Any, parts: Mapping[str, Guidance], layer: int = 1) -> None:
        self.base, self.parts, self.layer = base, list(parts.values()), layer
        self.open: list[list[int]] = []  # after each token of the last text, the numbers of the open parts

    def log_probs(self, tokens: Sequence[int]) -> Tensor:
        """`(T, V)` float64."""
        with torch.no_grad():
            out = self.base(input_ids=torch.tensor([list(tokens)]), use_cache=False, output_hidden_states=True)
        logits, lower, last = out.logits[0].double(), out.hidden_states[self.layer][0], out.hidden_states[-1][0]
        heard, rows = [PartByHand(part) for part in self.parts], []
        self.open = []
        for t, token in enumerate(tokens):
            text = list(tokens[: t + 1])
            for part in heard:
                part.hear(t + 1, token, lower[t], last[t])
            open_parts = [part for part in heard if part.is_open(text)]
            self.open.append([i for i, part in enumerate(heard) if part in open_parts])
            rows.append(self._row(logits[t], last[: t + 1].double(), open_parts, text))
        return torch.stack(rows)

    def _row(self, logits: Tensor, states: Tensor, open_parts: list[PartByHand], text: list[int]) -> Tensor:
        speaking = [part for part in open_parts if part.part.reply is not None]
        if speaking:
            first = max(speaking, key=lambda part: (part.reply(text)[1], part.opening()))  # of equals the first
            sure = torch.full_like(logits, -700.0)
            sure[first.reply(text)[0]] = 0.0
            return sure.log_softmax(-1)
        if open_parts:
            logits = logits / max(part.part.tilt.temperature for part in open_parts)
        for part in (each.part for each in open_parts):
            head, tilt = part.head, part.tilt
            context = head.A.double() @ (states.mean(0) if part.pooling == "mean" else states[-1])
            for token, row in zip(head.token_ids.tolist(), head.B.double()):
                log_odds = float(row @ context)
                weight = -math.log((1 - tilt.forget_prior) + tilt.forget_prior * math.exp(-log_odds))
                logits[token] += tilt.guidance_scale * weight
        return logits.log_softmax(-1)

    def greedy(self, tokens: Sequence[int], n: int) -> list[int]:
        """The next n likeliest tokens, one after the other."""
        text = list(tokens)
        for _ in range(n):
            text.append(int(self.log_probs(text)[-1].argmax()))
        return text[len(tokens) :]
