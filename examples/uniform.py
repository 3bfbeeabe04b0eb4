"""A method of one's own for `t3 bench`: name this file under `plugins:`. docs/own.md explains it."""

from torch import Tensor

from tempertilt.methods.registry import register
from tempertilt.methods.trained import TrainedMethod
from tempertilt.training.config import TrainConfig
from tempertilt.training.runner import Step


@register("Uniform", "https://arxiv.org/abs/2401.06121", TrainConfig)
class Uniform(TrainedMethod):
    """Every token as likely as any other on forget answers."""

    def loss(self, step: Step) -> Tensor:
        """Cross-entropy from the uniform distribution, and the usual loss on retain answers."""
        logits = step.forget.logits  # (answer tokens, vocabulary)
        return (logits.logsumexp(-1) - logits.mean(-1)).mean() + step.retain.mean_nll
