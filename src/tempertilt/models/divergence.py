"""Two causal LMs side by side: how far apart their next-token distributions are at the tokens of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tempertilt.errors import ModelError
from tempertilt.models.scoring import LOGIT_ROWS, Question


class Divergence(NamedTuple):
    """Two models before each of an answer's n tokens.

    Attributes:
        kl: `(n,)` float32, KL(reference || model) between their next-token distributions, nats.
        same_top: `(n,)` bool, whether both have the same most likely token.
    """

    kl: NDArray[np.float32]
    same_top: NDArray[np.bool_]


def divergences(model: Any, reference: Any, questions: Sequence[Question], batch_tokens: int) -> list[Divergence]:
    """The two models at the first answer of each question, the true answer as context.

    Args:
        model, reference: in eval mode; any objects with the forward of a transformers causal LM.
        batch_tokens: positions in one pass of each model, padding included; a longer question goes alone.

    Raises:
        ModelError: the models have vocabularies of different sizes.
    """
    order = sorted(range(len(questions)), key=lambda i: -_length(questions[i]))
    results: dict[int, Divergence] = {}
    while order:
        size = max(1, batch_tokens // _length(questions[order[0]]))
        batch, order = order[:size], order[size:]
        results.update(zip(batch, _compare(model, reference, [questions[i] for i in batch])))
    return [results[i] for i in range(len(questions))]


def _length(question: Question) -> int:
    return len(question.prompt) + len(question.answers[0])


@torch.inference_mode()
def _compare(model: Any, reference: Any, questions: Sequence[Question]) -> list[Divergence]:
    """Questions in one batch, padded at their ends, where nothing depends on it."""
    width = max(map(_length, questions)) - 1
    rows = [(*q.prompt, *q.answers[0][:-1]) for q in questions]
    ids = torch.tensor([row + (0,) * (width - len(row)) for row in rows])
    keep = torch.zeros(ids.shape, dtype=torch.bool)
    for i, question in enumerate(questions):
        keep[i, len(question.prompt) - 1 : len(rows[i])] = True
    ours, theirs = (_logits(one, ids, keep) for one in (model, reference))
    if ours.shape != theirs.shape:
        raise ModelError(
            f"the reference model has a vocabulary of {theirs.shape[-1]} tokens, the model one of {ours.shape[-1]}; must be the "
            "same: name a reference of the same base model"
        )
    kl, same_top = kl_and_same_top(ours, theirs.to(ours.device))
    splits = np.cumsum([len(q.answers[0]) for q in questions])[:-1]
    return [Divergence(*values) for values in zip(np.split(kl, splits), np.split(same_top, splits))]


def _logits(model: Any, ids: Tensor, keep: Tensor) -> Tensor:
    """Logits `(M, V)` of the M positions to keep."""
    ids = ids.to(model.device)
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits[keep.to(logits.device)]


def kl_and_same_top(ours: Tensor, theirs: Tensor) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """KL(theirs || ours) `(M,)` and whether both have the same argmax `(M,)`, from logits `(M, V)` on one device; nats."""
    parts = []
    for rows, others in zip(ours.split(LOGIT_ROWS), theirs.split(LOGIT_ROWS)):
        log_p, log_q = others.float().log_softmax(-1), rows.float().log_softmax(-1)
        parts.append(torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).clamp_(min=0.0))
    same_top = ours.argmax(-1) == theirs.argmax(-1)
    return torch.cat(parts).cpu().numpy(), same_top.cpu().numpy()
