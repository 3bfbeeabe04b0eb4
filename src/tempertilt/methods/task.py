"""What an unlearning method is given and what it gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tempertilt.config.options import Options, option
from tempertilt.data.examples import Example, ExampleConfig, build_examples
from tempertilt.data.records import Record
from tempertilt.errors import DataError
from tempertilt.models.base import BaseModel
from tempertilt.training.config import TrainRun


@dataclass(frozen=True)
class Budget(Options):
    """What a method may spend on training. None = no bound."""

    train_seconds: float | None = option(None, "seconds of training", ge=0)
    train_steps: int | None = option(None, "optimiser steps", ge=1)


@dataclass(frozen=True)
class Task:
    """One thing to unlearn: the model that knows it, the records, and the circumstances.

    Attributes:
        base: the target model, frozen; a method may change its weights in memory, the process is its own.
        forget, retain: records.
        examples: how they become tokens.
        work_dir: where the method may write; made by the caller.
        seed: of everything that is random.
        budget: what may be spent on training.
        load_reference: loads the model that never saw the forget set, None where there is none.
        report_to: where training reports to: none, tensorboard, wandb, trackio.
        run_name: the name that it reports under.
        progress: whether to show progress bars.
    """

    base: BaseModel
    forget: list[Record]
    retain: list[Record]
    examples: ExampleConfig
    work_dir: Path
    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    load_reference: Callable[[], BaseModel] | None = None
    report_to: str = "none"
    run_name: str = ""
    progress: bool = False

    @property
    def training(self) -> TrainRun:
        """What a training run needs of it."""
        budget = self.budget
        return TrainRun(
            self.work_dir,
            self.seed,
            budget.train_seconds,
            budget.train_steps,
            self.report_to,
            self.run_name,
            self.progress,
        )

    def examples_of(self, records: list[Record]) -> list[Example]:
        """Tokens of records; `DataError` if there are none."""
        if not records:
            raise DataError("there are no records; must be at least one to forget and one to retain")
        return build_examples(records, self.base.tokenizer, self.examples)


@dataclass(frozen=True)
class Unlearned:
    """An unlearned model and what it cost.

    Attributes:
        model: anything with the forward and generate of a transformers causal LM.
        seconds: wall time of the steps: "reference" (passes over the records with frozen weights), "training", others.
        trained_parameters: numbers that were trained.
        artefact_bytes: size of what has to be kept beside the base model to have the unlearned one.
        train_flops: an estimate of the floating-point operations of reference and training passes.
        examples: how prompts are built, where the method changes that.
        details: further figures, JSON-ready.
    """

    model: Any
    seconds: dict[str, float] = field(default_factory=dict)
    trained_parameters: int = 0
    artefact_bytes: int = 0
    train_flops: float = 0.0
    examples: ExampleConfig | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Method(ABC):
    """An unlearning method with its options. Its docstring's first line is its description.

    Attributes:
        is_random: whether another seed gives another model.
        steps: what makes the model, by the names in `tempertilt.config.keys.PROTOCOLS`.
    """

    is_random = True
    steps: tuple[str, ...] = ()

    def __init__(self, config: Any) -> None:
        self.config = config

    def recipe(self) -> dict[str, Any]:
        """Every option that decides the outcome, JSON-ready."""
        return asdict(self.config)

    @abstractmethod
    def unlearn(self, task: Task) -> Unlearned:
        """Make the task's model stop producing its forget records."""
