"""GradDiff: ascent on forget, descent on retain (Liu et al., arXiv 2203.12817; Maini et al., arXiv 2401.06121)."""

from __future__ import annotations

from torch import Tensor

from tempertilt.methods.grad_ascent import ascent_loss
from tempertilt.methods.registry import register
from tempertilt.methods.trained import BalanceConfig, BalancedMethod
from tempertilt.training.runner import Step


@register("GradDiff", "https://arxiv.org/abs/2401.06121", BalanceConfig)
class GradDiff(BalancedMethod):
    """Gradient ascent on forget answers, descent on retain answers."""

    def forget_loss(self, step: Step) -> Tensor:
        """-L."""
        return ascent_loss(step.forget.token_nll)
