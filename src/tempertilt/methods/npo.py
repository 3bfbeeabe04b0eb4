"""NPO: negative preference optimisation (Zhang et al., arXiv 2404.05868)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from tempertilt.config.options import option
from tempertilt.methods.registry import register
from tempertilt.methods.trained import BalanceConfig, BalancedMethod
from tempertilt.training.runner import Step


@dataclass(frozen=True)
class NPOConfig(BalanceConfig):
    """Options of NPO."""

    beta: float = option(0.1, "inverse temperature; towards 0 it becomes gradient ascent", gt=0)


def npo_loss(nll: Tensor, frozen_nll: Tensor, beta: float) -> Tensor:
    """-(2/beta) log sigmoid(beta (S - S_frozen)), mean over answers (Zhang et al., arXiv 2404.05868).

    At least 0, and its gradient vanishes where S is far above S_frozen; as beta goes to 0 its gradient goes to that of -S.

    Args:
        nll, frozen_nll: `(B,)` summed NLL of each answer, nats.
    """
    return -2 / beta * F.logsigmoid(beta * (nll - frozen_nll)).mean()


@register("NPO", "https://arxiv.org/abs/2404.05868", NPOConfig)
class NPO(BalancedMethod):
    """Negative preference optimisation against the frozen model."""

    reference = ("forget",)

    def forget_loss(self, step: Step) -> Tensor:
        """NPO on the summed NLL."""
        return npo_loss(step.forget.nll, step.forget.frozen_nll, self.config.beta)
