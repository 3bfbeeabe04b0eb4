"""CE-U: cross-entropy to the model's own distribution without the true token (Yang, arXiv 2503.01224)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from tempertilt.config.options import option
from tempertilt.methods.registry import register
from tempertilt.methods.trained import BalanceConfig, BalancedMethod
from tempertilt.training.runner import Step


@dataclass(frozen=True)
class CEUConfig(BalanceConfig):
    """Options of CE-U."""

    alpha: float = option(0.0, "weight of the retain loss", ge=0)


def ceu_loss(logits: Tensor, targets: Tensor, is_first: Tensor) -> Tensor:
    """Cross-entropy from softmax(own logits, the true token at -inf, detached), mean over all tokens of an answer but its first.

    Args:
        logits: `(N, V)`.
        targets: `(N,)`.
        is_first: `(N,)` bool, the tokens that are left out. Answers of one token have none left; a batch of such gives 0.
    """
    logits, targets = logits[~is_first], targets[~is_first]
    teacher = logits.detach().scatter(-1, targets[:, None], float("-inf")).softmax(-1)
    return F.cross_entropy(logits, teacher, reduction="sum") / max(1, len(targets))


@register("CE-U", "https://arxiv.org/abs/2503.01224", CEUConfig)
class CEU(BalancedMethod):
    """Cross-entropy to the model's own distribution without the true token."""

    def forget_loss(self, step: Step) -> Tensor:
        """CE-U on forget."""
        return ceu_loss(step.forget.logits, step.forget.targets, step.forget.is_first)
