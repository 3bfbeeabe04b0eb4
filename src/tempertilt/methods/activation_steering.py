"""ActivationSteering: one vector added to the residual stream (Rimsky et al., arXiv 2312.06681), from forget to retain.

The vector is the difference of mean states, of retain answers less forget answers, after one layer. It is added at every
position of every prompt, with no gate: what a single global vector does, to compare gated methods with. The paper takes it
from pairs of contrasting answers to one question, and leaves the prompt as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tempertilt.config.options import Options, option
from tempertilt.environment import Clock
from tempertilt.methods.activations import ChangedLayer, layer_at, mean_states
from tempertilt.methods.registry import register
from tempertilt.methods.steered import Pass, SteeredLM
from tempertilt.methods.task import Method, Task, Unlearned


@dataclass(frozen=True)
class ActivationSteeringConfig(Options):
    """Options of the vector."""

    strength: float = option(1.0, "what the difference of means is multiplied by", ge=0)
    depth: float = option(0.5, "where it is added, as a share of the layers", gt=0, le=1)


class ActivationSteeringModel(SteeredLM):
    """The base model with a vector added after one layer, in a pass of its own."""

    vector: Tensor

    def __init__(self, base: Any, vector: Tensor, layer: int, settings: dict[str, Any]) -> None:
        super().__init__(base, settings | {"layer": layer})
        self.register_buffer("vector", vector.to(base.device))
        self.changed = ChangedLayer(base, layer)

    def steer(self, logits: Tensor, step: Pass) -> Tensor:
        """Logits of the changed model."""
        return self.changed(lambda states: states + self.vector.to(states), lambda model: step.logits(model, "steered"))


@register("ActivationSteering", "https://arxiv.org/abs/2312.06681", ActivationSteeringConfig)
class ActivationSteering(Method):
    """One vector from forget to retain answers, added to the residual stream at every token of every prompt."""

    is_random = False

    def unlearn(self, task: Task) -> Unlearned:
        """Average the states."""
        clock, config, base = Clock(), self.config, task.base.model
        layer = layer_at(base, config.depth)
        with clock("reference"):
            forget, retain = (mean_states(base, task.examples_of(of), layer).mean(0) for of in (task.forget, task.retain))
        vector = config.strength * (retain - forget)
        model = ActivationSteeringModel(base, vector, layer, {"method": "ActivationSteering", "strength": config.strength})
        return Unlearned(model=model, seconds=clock.seconds, artefact_bytes=4 * vector.numel())
