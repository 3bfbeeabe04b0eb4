"""GradAscent: climb the loss of the forget answers, with nothing to hold the model (arXiv 2401.06121)."""

from __future__ import annotations

from torch import Tensor

from tempertilt.methods.registry import register
from tempertilt.methods.trained import TrainedMethod
from tempertilt.training.config import TrainConfig
from tempertilt.training.runner import Step


def ascent_loss(token_nll: Tensor) -> Tensor:
    """-L: minus the mean of the tokens' NLL (Maini et al., arXiv 2401.06121, "gradient ascent"). Not bounded below.

    Args:
        token_nll: `(N,)` nats.
    """
    return -token_nll.mean()


@register("GradAscent", "https://arxiv.org/abs/2401.06121", TrainConfig)
class GradAscent(TrainedMethod):
    """Gradient ascent on the forget answers' loss."""

    uses_retain = False

    def loss(self, step: Step) -> Tensor:
        """-L on forget."""
        return ascent_loss(step.forget.token_nll)
