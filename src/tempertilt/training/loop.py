"""The one training loop, on the Trainer of transformers: full or LoRA, frozen references and frozen lower layers cached.

A method is an `Objective`: a loss of the answers in a batch. The model, its loss and the examples are one module, whose inputs
are the numbers of examples; so data-parallel wrappers see a plain module that returns a loss.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from tempertilt.data.examples import Example
from tempertilt.environment import Clock
from tempertilt.errors import DataError, TemperTiltError
from tempertilt.training.config import TrainConfig, TrainRun, check_tracker
from tempertilt.training.runner import Objective, Runner

Rate = Callable[[int, int], float]


@dataclass(frozen=True)
class Trained:
    """A model whose training is done.

    Attributes:
        model: what was trained: a PEFT model with LoRA, else the model itself.
        parameters: numbers that were trained.
        artefact_bytes: their size.
        flops: estimate: 2 for each weight and token forward, as much backward, and again for weights that are trained.
        steps: optimiser steps.
        seconds: of "reference" and "training".
        losses: by epoch, the mean over its batches.
        cached: whether the frozen lower layers were replayed.
        stopped: whether the budget ended training before its last step.
    """

    model: Any
    parameters: int
    artefact_bytes: int
    flops: float
    steps: int
    seconds: dict[str, float]
    losses: list[float]
    cached: bool
    stopped: bool

    def details(self) -> dict[str, Any]:
        """What a result records of it, JSON-ready."""
        return {name: getattr(self, name) for name in ("steps", "losses", "cached", "stopped")}


def train(
    model: Any,
    roles: Mapping[str, Sequence[Example]],
    objective: Objective,
    config: TrainConfig,
    run: TrainRun,
    batches: Sampler[list[int]] | None = None,
    rate: Rate | None = None,
) -> Trained:
    """Train a model for an objective.

    Args:
        model: a causal LM of transformers; LoRA wraps its modules in place.
        run: seed, limits, and where the run reports.
        roles: examples by role; "alternate" has one for each of "forget". Passes go over the first role, the others keep pace.
        batches: which examples of the first role go together in an epoch; None: at random.
        rate: the share of the highest learning rate at a step of so many steps, in place of `config.schedule`.

    Raises:
        DataError: a role has no examples.
        TemperTiltError: the loss is no longer finite.
    """
    for role, examples in roles.items():
        if not examples:
            raise DataError(f"there are no examples in the role {role!r} to train on")
    clock = Clock()
    torch.manual_seed(run.seed)
    with clock("reference"):
        runner = Runner(model, roles, objective, config)
        runner.run_frozen(objective)
    trained = [parameter for parameter in runner.parameters() if parameter.requires_grad]
    trainer, progress = _trainer(runner, config, run, batches, rate)
    with clock("training"):
        trainer.train()
    runner.model.requires_grad_(False).eval()
    return Trained(
        model=runner.model,
        parameters=sum(parameter.numel() for parameter in trained),
        artefact_bytes=sum(parameter.numel() * parameter.element_size() for parameter in trained),
        flops=runner.flops * int(trainer.args.world_size),
        steps=int(trainer.state.global_step),
        seconds=clock.seconds,
        losses=progress.losses,
        cached=runner.replay is not None,
        stopped=progress.stopped,
    )


class _Pairs(Dataset):  # type: ignore[type-arg]
    """Numbers of examples by role: each of the first role once, "alternate" with its question's, others drawn in turn."""

    def __init__(self, runner: Runner, seed: int) -> None:
        self.roles = runner.roles
        self.anchor = next(iter(self.roles))
        self.rng = np.random.default_rng(seed)
        self.queues: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.roles[self.anchor])

    def __getitem__(self, i: int) -> dict[str, int]:
        return {role: self._of(role, i) for role in self.roles}

    def _of(self, role: str, i: int) -> int:
        if role in (self.anchor, "alternate"):
            return self.roles[role][i]
        if not self.queues.get(role):
            self.queues[role] = self.rng.permutation(np.asarray(self.roles[role])).tolist()
        return self.queues[role].pop()


def _collate(items: list[dict[str, int]]) -> dict[str, Tensor]:
    return {role: torch.tensor([item[role] for item in items]) for role in items[0]}


def _trainer(
    runner: Runner, config: TrainConfig, run: TrainRun, batches: Sampler[list[int]] | None, rate: Rate | None
) -> tuple[Any, Any]:
    """The Trainer, and the callback that follows it."""
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    class LossTrainer(Trainer):  # type: ignore[misc]
        """Takes the loss that the module gives, and stops where it is no number."""

        def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
            runner.epoch = float(self.state.epoch or 0.0)
            outputs = model(**inputs)
            if not bool(outputs["loss"].isfinite()):
                raise TemperTiltError(
                    f"the loss is {float(outputs['loss'].detach())} after {self.state.global_step} steps; "
                    f"lower learning_rate ({config.learning_rate})"
                )
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

        def get_train_dataloader(self) -> DataLoader[Any]:
            if batches is None:
                return super().get_train_dataloader()  # type: ignore[no-any-return]
            loader: DataLoader[Any] = DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=_collate)
            return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            if rate is None:
                return super().create_scheduler(num_training_steps, optimizer)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: rate(step, num_training_steps))
            return self.lr_scheduler

    progress = _progress(run)
    trainer = LossTrainer(
        model=runner,
        args=_arguments(runner, config, run),
        train_dataset=_Pairs(runner, run.seed),
        data_collator=_collate,
        callbacks=[progress],
    )
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    return trainer, progress


def _arguments(runner: Runner, config: TrainConfig, run: TrainRun) -> Any:
    from transformers import TrainingArguments

    if run.report_to == "tensorboard":
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.work_dir / "tensorboard"))
    arguments = TrainingArguments(
        output_dir=str(run.work_dir),
        per_device_train_batch_size=config.train_batch_size,
        num_train_epochs=config.epochs,
        max_steps=run.train_steps or -1,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type="constant_with_warmup" if config.schedule == "constant" else config.schedule,
        max_grad_norm=config.max_grad_norm,
        seed=run.seed,
        report_to=[] if run.report_to == "none" else [check_tracker(run.report_to)],
        run_name=run.run_name or None,
        project="tempertilt",
        logging_strategy="epoch",
        save_strategy="no",
        use_cpu=runner.causal_lm.device.type == "cpu",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        label_names=[],
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process trains on one GPU; copies of the module would not share its cache
    return arguments


def _progress(run: TrainRun) -> Any:
    """The callback that follows training."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]
        """Losses by epoch, the bar, and the end of the budget, which all processes reach together."""

        def __init__(self) -> None:
            self.losses: list[float] = []
            self.stopped = False
            self.started = time.perf_counter()
            self.bar: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            hidden = not (run.progress and state.is_world_process_zero)
            self.bar = tqdm(total=state.max_steps, unit=" steps", desc=run.run_name or "train", disable=hidden)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(round(float(logs["loss"]), 6))
                self.bar.set_postfix(loss=f"{self.losses[-1]:.3f}")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.update()
            limit = run.train_seconds
            if limit is not None and _agreed(time.perf_counter() - self.started > limit, args.device):
                self.stopped = state.global_step < state.max_steps
                control.should_training_stop = True

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.close()

    return Progress()


def _agreed(stop: bool, device: torch.device) -> bool:
    """Whether the first process wants to stop."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return stop
    flag = torch.tensor([float(stop)], device=device)
    torch.distributed.broadcast(flag, src=0)
    return bool(flag.item())
