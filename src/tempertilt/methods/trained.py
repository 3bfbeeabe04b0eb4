"""Methods that train the model itself."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from tempertilt.config.options import option
from tempertilt.data.examples import Example
from tempertilt.data.records import Record
from tempertilt.environment import Clock
from tempertilt.methods.task import Method, Task, Unlearned
from tempertilt.training.answers import Answers
from tempertilt.training.config import TrainConfig
from tempertilt.training.loop import train
from tempertilt.training.runner import Step

RETAIN_LOSSES = ("nll", "kl")


@dataclass(frozen=True)
class BalanceConfig(TrainConfig):
    """Total loss = gamma * forget + alpha * retain, as in open-unlearning (arXiv 2506.12618)."""

    gamma: float = option(1.0, "weight of the forget loss", ge=0)
    alpha: float = option(1.0, "weight of the retain loss", ge=0)
    retain_loss: str = option("nll", "retain loss: nll, or kl from the frozen model", choices=RETAIN_LOSSES)


def kl_loss(logits: Tensor, frozen_logits: Tensor) -> Tensor:
    """KL(frozen || trained), mean over positions, nats (Maini et al., arXiv 2401.06121, "KL minimisation").

    Args:
        logits, frozen_logits: `(N, V)`.
    """
    return F.kl_div(logits.log_softmax(-1), frozen_logits.log_softmax(-1), reduction="batchmean", log_target=True)


class TrainedMethod(Method):
    """A method that trains the model: it has a loss of the answers in a batch. LoRA is merged into the weights at the end.

    Attributes:
        reference, hidden_layer, hidden_reference: see `training.Objective`.
        uses_retain: whether the loss looks at retain answers; if not, they are not read at all.
        clock: of the steps before training that take time, by their names.
    """

    uses_retain = True
    steps = ("train",)

    reference: tuple[str, ...] = ()
    hidden_layer: int | None = None
    hidden_reference: tuple[str, ...] = ()

    @abstractmethod
    def loss(self, step: Step) -> Tensor:
        """The loss of one batch, a scalar."""

    def alternates(self, task: Task) -> list[Record] | None:
        """Another answer to each of the forget records, in their order, if the method wants any."""
        return None

    def unlearn(self, task: Task) -> Unlearned:
        """Train, and merge."""
        self.clock = Clock()
        roles = {"forget": task.examples_of(task.forget)}
        if self.uses_retain:
            roles["retain"] = task.examples_of(task.retain)
        if (records := self.alternates(task)) is not None:
            roles["alternate"] = aligned(roles["forget"], task.examples_of(records))
        trained = train(task.base.model, roles, self, self.config, task.training)
        model = trained.model if self.config.lora_rank == 0 else trained.model.merge_and_unload()
        return Unlearned(
            model=model.requires_grad_(False).eval(),
            seconds=trained.seconds | self.clock.seconds,
            trained_parameters=trained.parameters,
            artefact_bytes=trained.artefact_bytes,
            train_flops=trained.flops,
            details=trained.details() | self.details(),
        )

    def details(self) -> dict[str, Any]:
        """Further figures for the result."""
        return {}


class BalancedMethod(TrainedMethod):
    """A method whose loss is gamma * forget + alpha * retain."""

    def __init__(self, config: BalanceConfig) -> None:
        super().__init__(config)
        self.uses_retain = config.alpha > 0
        if config.retain_loss == "kl" and config.alpha:
            self.reference = (*self.reference, "retain")

    @abstractmethod
    def forget_loss(self, step: Step) -> Tensor:
        """The forget loss of one batch, a scalar."""

    def loss(self, step: Step) -> Tensor:
        """gamma * forget + alpha * retain; the retain answers run only where alpha is not 0."""
        total: Tensor = self.config.gamma * self.forget_loss(step)
        return total + self.config.alpha * self.retain_loss(step.retain) if self.config.alpha else total

    def retain_loss(self, retain: Answers) -> Tensor:
        """Mean NLL, or KL from the frozen model."""
        return retain.mean_nll if self.config.retain_loss == "nll" else kl_loss(retain.logits, retain.reference.logits)


def aligned(forget: list[Example], alternate: list[Example]) -> list[Example]:
    """The first alternate example of the record that each forget example is of."""
    first: dict[int, Example] = {}
    for example in alternate:
        first.setdefault(example.record_index, example)
    return [first[example.record_index] for example in forget]
