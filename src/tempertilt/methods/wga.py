"""WGA: gradient ascent weighted by the token's probability (Wang et al., arXiv 2502.19301)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tempertilt.config.options import option
from tempertilt.methods.registry import register
from tempertilt.methods.trained import BalanceConfig, BalancedMethod
from tempertilt.training.runner import Step


@dataclass(frozen=True)
class WGAConfig(BalanceConfig):
    """Options of WGA."""

    beta: float = option(1.0, "power of the probability that weights a token")


def wga_loss(token_nll: Tensor, beta: float) -> Tensor:
    """-mean p^beta * nll, the weight detached (arXiv 2502.19301, "weighted gradient ascent").

    Args:
        token_nll: `(N,)` nats; p = exp(-nll).
    """
    return -((-beta * token_nll.detach()).exp() * token_nll).mean()


@register("WGA", "https://arxiv.org/abs/2502.19301", WGAConfig)
class WGA(BalancedMethod):
    """Gradient ascent, tokens weighted by their probability."""

    def forget_loss(self, step: Step) -> Tensor:
        """WGA on forget."""
        return wga_loss(step.forget.token_nll, self.config.beta)
