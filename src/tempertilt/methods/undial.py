"""UNDIAL: distil from the frozen model with the true tokens held down (Dong et al., arXiv 2402.10052)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tempertilt.config.options import option
from tempertilt.methods.registry import register
from tempertilt.methods.trained import BalanceConfig, BalancedMethod
from tempertilt.training.runner import Step


@dataclass(frozen=True)
class UndialConfig(BalanceConfig):
    """Options of UNDIAL."""

    alpha: float = option(0.0, "weight of the retain loss", ge=0)
    beta: float = option(10.0, "what is taken from the true token's logit")


def undial_loss(logits: Tensor, frozen_logits: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Cross-entropy from softmax(frozen logits - beta * onehot(true token)), mean over tokens (arXiv 2402.10052).

    Args:
        logits, frozen_logits: `(N, V)`.
        targets: `(N,)`.
    """
    teacher = frozen_logits.scatter_add(-1, targets[:, None], torch.full_like(frozen_logits[:, :1], -beta)).softmax(-1)
    return F.cross_entropy(logits, teacher)


@register("UNDIAL", "https://arxiv.org/abs/2402.10052", UndialConfig)
class Undial(BalancedMethod):
    """Self-distillation from the frozen model with the true tokens' logits lowered."""

    reference = ("forget",)

    def forget_loss(self, step: Step) -> Tensor:
        """UNDIAL on forget."""
        answers = step.forget
        return undial_loss(answers.logits, answers.reference.logits, answers.targets, self.config.beta)
