"""SimNPO: NPO without a reference, on the length-normalised loss (Fan et al., arXiv 2410.07163)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from tempertilt.config.options import option
from tempertilt.methods.registry import register
from tempertilt.methods.trained import BalanceConfig, BalancedMethod
from tempertilt.training.runner import Step


@dataclass(frozen=True)
class SimNPOConfig(BalanceConfig):
    """Options of SimNPO."""

    gamma: float = option(0.125, "weight of the forget loss", ge=0)
    beta: float = option(4.5, "inverse temperature", gt=0)
    delta: float = option(0.0, "margin: the mean loss, nats a token, that is aimed at")


def simnpo_loss(mean_nll: Tensor, beta: float, delta: float) -> Tensor:
    """-(2/beta) log sigmoid(beta (L - delta)), mean over answers (Fan et al., arXiv 2410.07163).

    Args:
        mean_nll: `(B,)` length-normalised NLL of each answer, nats a token.
    """
    return -2 / beta * F.logsigmoid(beta * (mean_nll - delta)).mean()


@register("SimNPO", "https://arxiv.org/abs/2410.07163", SimNPOConfig)
class SimNPO(BalancedMethod):
    """NPO without a reference model, on length-normalised losses."""

    def forget_loss(self, step: Step) -> Tensor:
        """SimNPO on the mean NLL of each answer."""
        return simnpo_loss(step.forget.length_normalised_nll, self.config.beta, self.config.delta)
