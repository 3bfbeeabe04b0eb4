"""IdkDPO: prefer “I don't know” to the true answer, by DPO (arXiv 2305.18290; Maini et al., arXiv 2401.06121)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from tempertilt.config.options import option
from tempertilt.data.records import Record
from tempertilt.methods.refusals import refusal_of
from tempertilt.methods.registry import register
from tempertilt.methods.task import Task
from tempertilt.methods.trained import BalanceConfig, BalancedMethod
from tempertilt.training.runner import Step


@dataclass(frozen=True)
class DPOConfig(BalanceConfig):
    """Options of IdkDPO."""

    beta: float = option(0.1, "inverse temperature", gt=0)


def dpo_loss(won: Tensor, frozen_won: Tensor, lost: Tensor, frozen_lost: Tensor, beta: float) -> Tensor:
    """-(2/beta) log sigmoid(beta [(S_frozen^w - S^w) - (S_frozen^l - S^l)]), mean over pairs (arXiv 2305.18290, times 2/beta).

    Args:
        won, frozen_won: `(B,)` summed NLL of the answers that are preferred, nats.
        lost, frozen_lost: `(B,)` of those that are not.
    """
    return -2 / beta * F.logsigmoid(beta * ((frozen_won - won) - (frozen_lost - lost))).mean()


@register("IdkDPO", "https://arxiv.org/abs/2401.06121", DPOConfig)
class IdkDPO(BalancedMethod):
    """Preference for a refusal over the true answer, by DPO."""

    reference = ("forget", "alternate")

    def alternates(self, task: Task) -> list[Record]:
        """A refusal to each forget question, drawn from a list."""
        rng = np.random.default_rng(task.seed)
        return [refusal_of(record, rng) for record in task.forget]

    def forget_loss(self, step: Step) -> Tensor:
        """DPO, the alternate answer preferred."""
        won, lost = step.alternate, step.forget
        return dpo_loss(won.nll, won.frozen_nll, lost.nll, lost.frozen_nll, self.config.beta)
