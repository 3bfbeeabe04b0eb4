"""Offset unlearning (delta-unlearning; Huang et al., arXiv 2404.11045): a small model learns the change of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tempertilt.config.options import option
from tempertilt.environment import Clock
from tempertilt.methods.assistant import AssistantConfig, build_assistant
from tempertilt.methods.registry import register
from tempertilt.methods.steered import Pass, SteeredLM
from tempertilt.methods.task import Method, Task, Unlearned
from tempertilt.training.loop import train
from tempertilt.training.runner import Step, answer_states


@dataclass(frozen=True)
class OffsetConfig(AssistantConfig):
    """Options of offset unlearning."""

    strength: float = option(1.0, "what the offset of the small models' logits is multiplied by", ge=0)
    alpha: float = option(1.0, "weight of the retain loss", ge=0)


def with_offset(logits: Tensor, tuned: Tensor, untuned: Tensor, strength: float) -> Tensor:
    """z + strength * (z_tuned - z_untuned) (arXiv 2404.11045).

    Args:
        logits, tuned, untuned: `(..., V)`, of the base model and of the small one after and before it was trained.
    """
    return logits + strength * (tuned - untuned)


def offset_loss(forget_nll: Tensor, retain_nll: Tensor, alpha: float) -> Tensor:
    """-L_forget + alpha L_retain of the distribution with the offset: gradient difference, one of the paper's objectives.

    Args:
        forget_nll, retain_nll: scalars, mean over tokens.
    """
    return -forget_nll + alpha * retain_nll


class _OffsetObjective:
    """Gradient difference on the distribution that decoding will use; both frozen distributions are known before training."""

    reference: tuple[str, ...] = ("forget", "retain")
    hidden_layer: int | None = None
    hidden_reference: tuple[str, ...] = ()

    def __init__(self, states: list[Tensor], output: nn.Module, config: OffsetConfig) -> None:
        self.states, self.output, self.config = states, output, config

    def loss(self, step: Step) -> Tensor:
        """-L on forget + alpha L on retain."""
        return offset_loss(self._nll(step, "forget"), self._nll(step, "retain"), self.config.alpha)

    def _nll(self, step: Step, role: str) -> Tensor:
        answers = step.forget if role == "forget" else step.retain
        base = self.output(torch.cat([self.states[i] for i in step.numbers(role)])).float()
        logits = with_offset(base, answers.logits, answers.reference.logits, self.config.strength)
        return F.cross_entropy(logits, answers.targets)


class OffsetModel(SteeredLM):
    """The base model and the change that a small one has learned."""

    def __init__(self, base: Any, tuned: Any, untuned: Any, strength: float) -> None:
        super().__init__(base, {"method": "offset", "strength": strength})
        self.tuned, self.untuned = tuned, untuned

    def steer(self, logits: Tensor, step: Pass) -> Tensor:
        """z + strength * (z_tuned - z_untuned)."""
        tuned, untuned = step.logits(self.tuned, "tuned"), step.logits(self.untuned, "untuned")
        return with_offset(logits, tuned, untuned, self.settings["strength"])


@register("offset", "https://arxiv.org/abs/2404.11045", OffsetConfig)
class Offset(Method):
    """Logits plus the change that unlearning makes to a small assistant's."""

    steps = ("train",)

    def unlearn(self, task: Task) -> Unlearned:
        """Train the assistant under the distribution with its offset."""
        clock, base = Clock(), task.base.model
        roles = {"forget": task.examples_of(task.forget), "retain": task.examples_of(task.retain)}
        with clock("reference"):
            states = answer_states(base, [example for examples in roles.values() for example in examples])
        tuned, untuned = (build_assistant(base, self.config.layers) for _ in range(2))
        objective = _OffsetObjective(states, base.get_output_embeddings(), self.config)
        trained = train(tuned, roles, objective, self.config, task.training)
        seconds = trained.seconds | {"reference": trained.seconds["reference"] + clock.seconds["reference"]}
        return Unlearned(
            model=OffsetModel(base, trained.model.get_base_model(), untuned, self.config.strength),
            seconds=seconds,
            trained_parameters=trained.parameters,
            artefact_bytes=trained.artefact_bytes,
            train_flops=trained.flops,
            details=trained.details(),
        )
