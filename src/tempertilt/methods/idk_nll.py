"""IdkNLL: learn to answer the forget questions with a refusal (Maini et al., arXiv 2401.06121)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from tempertilt.data.records import Record
from tempertilt.methods.refusals import refusal_of
from tempertilt.methods.registry import register
from tempertilt.methods.task import Task
from tempertilt.methods.trained import BalanceConfig, BalancedMethod
from tempertilt.training.runner import Step


@register("IdkNLL", "https://arxiv.org/abs/2401.06121", BalanceConfig)
class IdkNLL(BalancedMethod):
    """Fine-tuning on refusals to the forget questions."""

    def alternates(self, task: Task) -> list[Record]:
        """A refusal to each forget question, drawn from a list."""
        rng = np.random.default_rng(task.seed)
        return [refusal_of(record, rng) for record in task.forget]

    def forget_loss(self, step: Step) -> Tensor:
        """L of the refusals."""
        return step.alternate.mean_nll
