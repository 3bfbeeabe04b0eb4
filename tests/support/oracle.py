"""The guided distribution by its definition, for comparison."""

from __future__ import annotations

from typing import Any

import torch

from tempertilt.guidance.head import GuidanceHead


class Oracle:
    """The guided distribution from whole unpadded sequences, by the definition: no cache, no code of the package."""

    def __init__(self, model: Any, head: GuidanceHead, temperature: float, scale: float) -> None:
        self.model, self.temperature, self.scale = model, temperature, scale
        self.a, self.b, self.ids = head.A.detach().double(), head.B.detach().double(), head.token_ids

    def contexts(self, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Base logits `(T, V)` and running means of what the output layer reads `(T, d)`, float64."""
        seen: list[torch.Tensor] = []
        hook = self.model.get_output_embeddings().register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double()
        hook.remove()
        states = seen[0][0].double()
        return logits, torch.stack([states[: t + 1].mean(0) for t in range(len(tokens))])

    def distribution(self, tokens: list[int]) -> torch.Tensor:
        """log p_hat `(T, V)` at every position."""
        logits, contexts = self.contexts(tokens)
        log_odds = torch.zeros_like(logits)
        for t in range(len(tokens)):
            log_odds[t, self.ids] = self.b @ (self.a @ contexts[t])
        retain = torch.sigmoid(log_odds).clamp(min=1e-300)
        guided = torch.softmax(logits, -1).log() / self.temperature + self.scale * retain.log()
        return guided - guided.logsumexp(-1, keepdim=True)

    def greedy(self, tokens: list[int], n: int) -> list[int]:
        tokens = list(tokens)
        for _ in range(n):
            tokens.append(int(self.distribution(tokens)[-1].argmax()))
        return tokens
