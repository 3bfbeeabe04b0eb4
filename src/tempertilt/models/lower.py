"""States of a lower layer alone: the layers above it do not run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tempertilt.data.batches import plan_batches
from tempertilt.models.body_pass import LEAST_ROWS, LEAST_TOKENS, body_pass


@torch.inference_mode()
def lower_states(model: Any, prompts: Sequence[Sequence[int]], layer: int, batch_tokens: int = 2048) -> list[Tensor]:
    """States after `layer` decoder layers of all tokens of each prompt `(n, d)`, of the model's type, on CPU.

    Args:
        model: a causal LM.
        prompts: token ids.
        layer: 1 to the number of layers; the layers above it do not run.
        batch_tokens: padded tokens in one pass.
    """
    out: dict[int, Tensor] = {}
    for batch in _batches(prompts, batch_tokens):
        width = max(len(prompts[i]) for i in batch)
        ids = torch.tensor([[*prompts[i], *[0] * (width - len(prompts[i]))] for i in batch], device=model.device)
        mask = torch.tensor([[1] * len(prompts[i]) + [0] * (width - len(prompts[i])) for i in batch], device=model.device)
        states = body_pass(model, ids, mask, layer, only_lower=True).lower
        assert states is not None
        out |= {i: states[row, : len(prompts[i])].cpu() for row, i in enumerate(batch)}
    return [out[i] for i in range(len(prompts))]


def _batches(prompts: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    """Batches of similar length, of prompts that begin alike where there are enough of them."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        alike.setdefault(tuple(prompt[:LEAST_TOKENS]), []).append(i)
    groups = [group for group in alike.values() if len(group) >= LEAST_ROWS]
    groups.append([i for group in alike.values() if len(group) < LEAST_ROWS for i in group])
    return [[group[i] for i in batch] for group in groups for batch in plan_batches([prompts[i] for i in group], batch_tokens)]
