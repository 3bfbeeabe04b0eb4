"""Divergence Decoding: steer by what tells a small model of the forget data from one of the retain data (arXiv 2605.31293)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tempertilt.config.options import option
from tempertilt.methods.assistant import AssistantConfig, build_assistant
from tempertilt.methods.registry import register
from tempertilt.methods.steered import Pass, SteeredLM
from tempertilt.methods.task import Method, Task, Unlearned
from tempertilt.training.loop import train
from tempertilt.training.runner import Step

MODES = ("linear", "rank")


@dataclass(frozen=True)
class DDConfig(AssistantConfig):
    """Options of Divergence Decoding."""

    mode: str = option("linear", "linear: subtract the divergence; rank: exclude the highest ones", choices=MODES)
    strength: float = option(1.0, "linear: what the divergence is multiplied by", ge=0)
    top_k: int = option(20, "rank: number of tokens, those with the highest divergence, that are excluded", ge=1)


def linear_divergence(logits: Tensor, forget: Tensor, retain: Tensor, strength: float) -> Tensor:
    """z + strength * (log p_retain - log p_forget) (Merchant and Levy, arXiv 2605.31293, linear variant).

    Args:
        logits, forget, retain: `(..., V)`, of the base model and of the two small ones.
    """
    return logits + strength * (retain.log_softmax(-1) - forget.log_softmax(-1))


def rank_divergence(logits: Tensor, forget: Tensor, retain: Tensor, top_k: int, candidates: Tensor) -> Tensor:
    """The `top_k` tokens of the highest log p_forget - log p_retain get the lowest of all logits (2605.31293, rank).

    Not minus infinity, so that the likelihood of a text with such a token is a number.

    Args:
        logits, forget, retain: `(..., V)`.
        candidates: `(K,)` ids that may be excluded, those that occur in the records; others differ by noise alone.
    """
    divergence = (forget.log_softmax(-1) - retain.log_softmax(-1))[..., candidates]
    excluded = candidates[divergence.topk(min(top_k, len(candidates)), -1).indices]
    return logits.scatter(-1, excluded, logits.amin(-1, keepdim=True).expand(excluded.shape))


class _Likelihood:
    """Plain fine-tuning on one role."""

    reference: tuple[str, ...] = ()
    hidden_layer: int | None = None
    hidden_reference: tuple[str, ...] = ()

    def __init__(self, role: str) -> None:
        self.role = role

    def loss(self, step: Step) -> Tensor:
        """L of the role's answers."""
        return (step.forget if self.role == "forget" else step.retain).mean_nll


class DDModel(SteeredLM):
    """The base model steered by two small ones."""

    candidates: Tensor

    def __init__(self, base: Any, forget: Any, retain: Any, settings: dict[str, Any], candidates: Tensor) -> None:
        super().__init__(base, settings)
        self.forget, self.retain = forget, retain
        self.register_buffer("candidates", candidates)

    def steer(self, logits: Tensor, step: Pass) -> Tensor:
        """By the divergence of the two small models."""
        forget, retain = step.logits(self.forget, "forget"), step.logits(self.retain, "retain")
        if self.settings["mode"] == "linear":
            return linear_divergence(logits, forget, retain, self.settings["strength"])
        return rank_divergence(logits, forget, retain, self.settings["top_k"], self.candidates)


@register("DivergenceDecoding", "https://arxiv.org/abs/2605.31293", DDConfig)
class DivergenceDecoding(Method):
    """Logits steered by two small models, one of the forget and one of the retain answers."""

    steps = ("train",)

    def unlearn(self, task: Task) -> Unlearned:
        """Train both small models."""
        base, config = task.base.model, self.config
        examples = {"forget": task.examples_of(task.forget), "retain": task.examples_of(task.retain)}
        trained = {
            role: train(build_assistant(base, config.layers), {role: of}, _Likelihood(role), config, task.training)
            for role, of in examples.items()
        }
        tokens = torch.cat([torch.from_numpy(e.input_ids[e.scored]).long() for of in examples.values() for e in of]).unique()
        settings = {"method": "DivergenceDecoding", "mode": config.mode, "strength": config.strength, "top_k": config.top_k}
        models = [of.model.get_base_model() for of in trained.values()]
        parts = list(trained.values())
        return Unlearned(
            model=DDModel(base, models[0], models[1], settings, tokens.to(base.device)),
            seconds={name: round(sum(part.seconds[name] for part in parts), 3) for name in parts[0].seconds},
            trained_parameters=sum(part.parameters for part in parts),
            artefact_bytes=sum(part.artefact_bytes for part in parts),
            train_flops=sum(part.flops for part in parts),
            details={role: part.details() for role, part in trained.items()},
        )
