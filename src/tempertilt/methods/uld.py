"""ULD: unlearning from logit difference (Ji et al., arXiv 2406.08607).

A small assistant learns the reverse task, to remember forget answers and to know nothing of retain answers; its logits are
taken from the base model's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tempertilt.config.options import option
from tempertilt.methods.assistant import AssistantConfig, build_assistant
from tempertilt.methods.registry import register
from tempertilt.methods.steered import Pass, SteeredLM
from tempertilt.methods.task import Method, Task, Unlearned
from tempertilt.training.loop import train
from tempertilt.training.runner import Step


@dataclass(frozen=True)
class ULDConfig(AssistantConfig):
    """Options of ULD."""

    strength: float = option(0.75, "what the assistant's logits are multiplied by", ge=0)
    uniform_weight: float = option(6.5, "weight of the uniform distribution on retain answers", ge=0)
    floor: float = option(0.01, "tokens that the base finds less likely than this stay as they are", ge=0, lt=1)


def uniform_loss(logits: Tensor) -> Tensor:
    """Cross-entropy from the uniform distribution, less its lowest value log V: 0 where all tokens are equally likely, nats.

    Args:
        logits: `(N, V)`.
    """
    return (logits.logsumexp(-1) - logits.mean(-1)).mean() - math.log(logits.shape[-1])


def subtracted(logits: Tensor, assistant: Tensor, strength: float, floor: float) -> Tensor:
    """z - strength * (z_assistant - its mean over tokens), where the base's probability is at least `floor` (arXiv 2406.08607).

    An assistant that knows nothing, whose distribution is uniform, changes nothing; nor does one at tokens that the base would
    not say.

    Args:
        logits, assistant: `(..., V)`.
    """
    changed = logits - strength * (assistant - assistant.mean(-1, keepdim=True))
    return changed.where(logits.softmax(-1) >= floor, logits) if floor else changed


class _Reverse:
    """The assistant's objective: remember forget, know nothing of retain."""

    reference: tuple[str, ...] = ()
    hidden_layer: int | None = None
    hidden_reference: tuple[str, ...] = ()

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def loss(self, step: Step) -> Tensor:
        """L on forget + weight * distance to the uniform distribution on retain."""
        return step.forget.mean_nll + self.weight * uniform_loss(step.retain.logits)


class ULDModel(SteeredLM):
    """The base model less an assistant."""

    def __init__(self, base: Any, assistant: Any, settings: dict[str, Any]) -> None:
        super().__init__(base, settings)
        self.assistant = assistant

    def steer(self, logits: Tensor, step: Pass) -> Tensor:
        """z - strength * z_assistant."""
        other = step.logits(self.assistant, "assistant")
        return subtracted(logits, other, self.settings["strength"], self.settings["floor"])


@register("ULD", "https://arxiv.org/abs/2406.08607", ULDConfig)
class ULD(Method):
    """Logits less those of a small assistant that knows the forget answers only."""

    steps = ("train",)

    def unlearn(self, task: Task) -> Unlearned:
        """Train the assistant."""
        config = self.config
        roles = {"forget": task.examples_of(task.forget), "retain": task.examples_of(task.retain)}
        assistant = build_assistant(task.base.model, config.layers)
        trained = train(assistant, roles, _Reverse(config.uniform_weight), config, task.training)
        settings = {"method": "ULD", "strength": config.strength, "floor": config.floor}
        return Unlearned(
            model=ULDModel(task.base.model, trained.model.get_base_model(), settings),
            seconds=trained.seconds,
            trained_parameters=trained.parameters,
            artefact_bytes=trained.artefact_bytes,
            train_flops=trained.flops,
            details=trained.details(),
        )
