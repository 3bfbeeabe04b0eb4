"""KL: ascent on forget, and the frozen model's distribution on retain (Maini et al., arXiv 2401.06121)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tempertilt.config.options import option
from tempertilt.methods.grad_ascent import ascent_loss
from tempertilt.methods.registry import register
from tempertilt.methods.trained import RETAIN_LOSSES, BalanceConfig, BalancedMethod
from tempertilt.training.runner import Step


@dataclass(frozen=True)
class KLConfig(BalanceConfig):
    """Options of KL."""

    retain_loss: str = option("kl", "retain loss: kl from the frozen model, or nll", choices=RETAIN_LOSSES)


@register("KL", "https://arxiv.org/abs/2401.06121", KLConfig)
class KL(BalancedMethod):
    """Gradient ascent on forget answers, KL from the frozen model on retain answers."""

    def forget_loss(self, step: Step) -> Tensor:
        """-L."""
        return ascent_loss(step.forget.token_nll)
