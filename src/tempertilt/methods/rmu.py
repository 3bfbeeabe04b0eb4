"""RMU: steer the hidden states of forget answers to a random direction (Li et al., arXiv 2403.03218)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tempertilt.config.options import option
from tempertilt.methods.registry import register
from tempertilt.methods.task import Task, Unlearned
from tempertilt.methods.trained import TrainedMethod
from tempertilt.training.config import TrainConfig
from tempertilt.training.runner import Step


@dataclass(frozen=True)
class RMUConfig(TrainConfig):
    """Options of RMU."""

    layer: int = option(7, "number of the layer whose states are steered; it and those below it train", ge=0)
    steering: float = option(2.0, "c: length of the vector that forget states are steered to", gt=0)
    alpha: float = option(1.0, "weight of the distance to the frozen states on retain", ge=0)


def squared_distance(states: Tensor, goal: Tensor) -> Tensor:
    """mean over answer tokens of |h - goal|^2 / d (Li et al., arXiv 2403.03218).

    Args:
        states: `(N, d)`.
        goal: `(N, d)` or `(d,)`.
    """
    return (states - goal).square().mean()


def random_direction(size: int, seed: int) -> Tensor:
    """A unit vector `(size,)` of non-negative random numbers, the same for the same seed."""
    values: Tensor = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    unit: Tensor = values / values.norm()
    return unit


@register("RMU", "https://arxiv.org/abs/2403.03218", RMUConfig)
class RMU(TrainedMethod):
    """Representation misdirection: forget states of one layer are steered to a random vector."""

    def __init__(self, config: RMUConfig) -> None:
        super().__init__(config)
        self.hidden_layer = config.layer
        self.uses_retain = config.alpha > 0
        self.hidden_reference = ("retain",) if self.uses_retain else ()

    def unlearn(self, task: Task) -> Unlearned:
        """Draw the direction, then train."""
        width = task.base.model.config.get_text_config().hidden_size
        self.goal = self.config.steering * random_direction(width, task.seed)
        return super().unlearn(task)

    def loss(self, step: Step) -> Tensor:
        """|h_forget - c u|^2 / d + alpha |h_retain - frozen h_retain|^2 / d."""
        forget = step.hidden("forget")
        total: Tensor = squared_distance(forget, self.goal.to(forget.device))
        if not self.config.alpha:
            return total
        kept: Tensor = self.config.alpha * squared_distance(step.hidden("retain"), step.frozen_hidden("retain"))
        return total + kept
