"""SatImp: gradient ascent weighted by saturation and importance (Yang et al., arXiv 2505.11953)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tempertilt.config.options import option
from tempertilt.methods.registry import register
from tempertilt.methods.trained import BalanceConfig, BalancedMethod
from tempertilt.training.runner import Step


@dataclass(frozen=True)
class SatImpConfig(BalanceConfig):
    """Options of SatImp."""

    beta1: float = option(5.0, "power of p: tokens that are not forgotten yet (saturation)")
    beta2: float = option(1.0, "power of 1 - p: tokens that carry information (importance)")


def satimp_loss(token_nll: Tensor, beta1: float, beta2: float) -> Tensor:
    """-mean p^beta1 (1 - p)^beta2 * nll, the weights detached (arXiv 2505.11953).

    Args:
        token_nll: `(N,)` nats; p = exp(-nll).
    """
    p = (-token_nll.detach()).exp()
    return -(p**beta1 * (1 - p).clamp(min=0) ** beta2 * token_nll).mean()


@register("SatImp", "https://arxiv.org/abs/2505.11953", SatImpConfig)
class SatImp(BalancedMethod):
    """Gradient ascent, tokens weighted by saturation and importance."""

    def forget_loss(self, step: Step) -> Tensor:
        """SatImp on forget."""
        return satimp_loss(step.forget.token_nll, self.config.beta1, self.config.beta2)
