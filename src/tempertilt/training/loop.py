"""The one training loop, on the Trainer of transformers: full or LoRA, frozen references and frozen lower layers cached.

A method is an `Objective`: a loss of the answers in a batch. The model, its loss and the examples are one module, whose inputs
are the numbers of examples; so data-parallel wrappers see a plain module that returns a loss.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from tempertilt.config.options import Options, option
from tempertilt.data.batches import Batch, pad_batch, plan_batches
from tempertilt.data.examples import Example
from tempertilt.environment import Clock
from tempertilt.errors import ConfigError, DataError, MissingExtraError, ModelError, TemperTiltError
from tempertilt.models.base import decoder_layers
from tempertilt.training.answers import Answers, Frozen
from tempertilt.training.replay import (
    Replay,
    all_logits,
    has_plain_output,
    hidden_states,
    returns_tuple,
    skipped,
    with_lora,
)

TRACKERS = ("none", "tensorboard", "wandb", "trackio")
SCHEDULES = ("constant", "linear", "cosine")
PASS_TOKENS = 2048
"""Tokens in a pass of the frozen model."""

Rate = Callable[[int, int], float]


@dataclass(frozen=True)
class TrainConfig(Options):
    """How a method trains. Options that a method adds follow in its own configuration."""

    learning_rate: float = option(1e-4, "AdamW's highest learning rate", gt=0)
    epochs: float = option(5, "passes over the forget records, a random retain record beside each", gt=0)
    train_batch_size: int = option(8, "forget records in a batch", ge=1)
    lora_rank: int = option(16, "rank of the LoRA matrices; 0 = all weights are trained", ge=0)
    lora_alpha: float = option(32.0, "LoRA's alpha", gt=0)
    lora_dropout: float = option(0.0, "LoRA's dropout", ge=0, lt=1)
    train_layers: float = option(0.5, "share of the layers that get LoRA, from the top", gt=0, le=1)
    weight_decay: float = option(0.0, "AdamW's weight decay", ge=0)
    warmup_ratio: float = option(0.1, "share of the steps with a rising rate", ge=0, lt=1)
    schedule: str = option("cosine", "rate after the warm-up: constant, linear or cosine", choices=SCHEDULES)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", gt=0)
    cache_lower_layers: bool = option(True, "run the frozen lower layers once and keep their states")
    max_cache_gib: float = option(4.0, "states of frozen lower layers are kept up to this size, GiB", ge=0)


@dataclass(frozen=True)
class TrainRun:
    """The circumstances of one training run.

    Attributes:
        work_dir: where the run may write.
        seed: of everything that is random.
        train_seconds, train_steps: limits; None = no limit.
        report_to: none, tensorboard, wandb, trackio.
        run_name: the name that it reports under.
        progress: whether to show progress bars.
    """

    work_dir: Path
    seed: int = 0
    train_seconds: float | None = None
    train_steps: int | None = None
    report_to: str = "none"
    run_name: str = ""
    progress: bool = False


class Objective(Protocol):
    """What is trained for.

    Attributes:
        reference: roles whose answers are also wanted under the frozen model.
        hidden_layer: number of the layer whose states `Step.hidden` gives, None if they are not wanted; those
            above do not train.
        hidden_reference: roles of which these states are also wanted under the frozen model.
    """

    reference: tuple[str, ...]
    hidden_layer: int | None
    hidden_reference: tuple[str, ...]

    def loss(self, step: Step) -> Tensor:
        """The loss of one batch, a scalar."""
        ...


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


class Step:
    """One batch: the answers of each role, run through the model when they are asked for. `epoch` is a fraction."""

    def __init__(self, runner: Runner, indices: dict[str, list[int]], epoch: float) -> None:
        self._runner, self._indices, self.epoch = runner, indices, epoch

    def answers(self, role: str) -> Answers:
        """The answers of a role."""
        return self._runner.answers(self._indices[role])

    @cached_property
    def forget(self) -> Answers:
        """Answers to be forgotten."""
        return self.answers("forget")

    @cached_property
    def retain(self) -> Answers:
        """Retain answers, as many as are to be forgotten."""
        return self.answers("retain")

    @cached_property
    def alternate(self) -> Answers:
        """Other answers to the questions of `forget`, in their order."""
        return self.answers("alternate")

    def numbers(self, role: str) -> list[int]:
        """The numbers of a role's examples, counted over all roles in their order."""
        return self._indices[role]

    def hidden(self, role: str) -> Tensor:
        """States `(N, d)` of the objective's layer at the answer tokens of a role."""
        return self._runner.hidden(self._indices[role])

    def frozen_hidden(self, role: str) -> Tensor:
        """The same under the frozen model."""
        return torch.cat([self._runner.frozen_states[i] for i in self._indices[role]])


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


def first_trained(layers: int, share: float) -> int:
    """The number of the lowest layer that trains, where a share of the layers does, from the top."""
    return layers - max(1, round(share * layers))


class Runner(nn.Module):
    """A model in training with its examples and its objective; `forward` takes numbers of examples and gives the loss."""

    causal_lm: Any
    layers: nn.ModuleList
    frozen_output: nn.Module

    def __init__(self, model: Any, roles: Mapping[str, Sequence[Example]], objective: Objective, config: TrainConfig) -> None:
        super().__init__()
        self.examples = [example for examples in roles.values() for example in examples]
        starts = np.cumsum([0, *(len(examples) for examples in roles.values())]).tolist()
        self.roles = {role: range(start, stop) for role, start, stop in zip(roles, starts, starts[1:])}
        self.objective = objective
        self.epoch = self.flops = 0.0
        self.frozen: dict[int, tuple[Tensor, Tensor]] = {}
        self.frozen_states: dict[int, Tensor] = {}
        self.plain = has_plain_output(model, self.examples[0])
        places = getattr(model, "hf_device_map", None) or {}
        if len(set(places.values())) > 1:
            self.hf_device_map = places  # the Trainer leaves a model on several GPUs where it is
        model.eval()
        self.__dict__["causal_lm"] = model  # registered below, by itself or inside a PEFT model
        self.__dict__["layers"] = decoder_layers(model)
        self.first = self._first_layer(config)
        self.last = len(self.layers) if objective.hidden_layer is None else objective.hidden_layer + 1
        self.full = config.lora_rank == 0
        self.returns_tuple = returns_tuple(model, self.layers, self.examples[0])
        self.sizes = [sum(p.numel() for p in layer.parameters()) for layer in self.layers]
        output = model.get_output_embeddings()
        self.output_size = sum(p.numel() for p in output.parameters())
        self.__dict__["frozen_output"] = copy.deepcopy(output).requires_grad_(False) if self.full else output
        if self.full:
            self.model = model.requires_grad_(True)
        else:
            model.requires_grad_(False)
            lora: dict[str, Any] = {"rank": config.lora_rank, "alpha": config.lora_alpha, "dropout": config.lora_dropout}
            self.model = with_lora(model, self.layers, self.first, self.last, **lora)
        cached = self.first > 0 and config.cache_lower_layers
        self.replay = Replay.of(model, self.layers, self.first, self.examples, config.max_cache_gib) if cached else None
        if self.replay is not None:
            self.flops += 2.0 * sum(map(len, self.examples)) * sum(self.sizes[: self.first])

    def _first_layer(self, config: TrainConfig) -> int:
        if config.lora_rank == 0:
            return 0
        first = first_trained(len(self.layers), config.train_layers)
        layer = self.objective.hidden_layer
        if layer is not None and not first <= layer < len(self.layers):
            raise ConfigError(
                f"layer is {layer}; must be {first} to {len(self.layers) - 1}, those that train with train_layers "
                f"{config.train_layers}"
            )
        return first

    def train(self, mode: bool = True) -> Runner:
        """The model stays in eval mode, for frozen references and replayed layers have no dropout; only LoRA's own is on."""
        super().train(False)
        for name, module in self.named_modules():
            if "lora_dropout" in name:
                module.train(mode)
        return self

    def forward(self, **indices: Tensor) -> dict[str, Tensor]:
        """The loss of the examples with these numbers, by role, each `(B,)`."""
        step = Step(self, {role: numbers.tolist() for role, numbers in indices.items()}, self.epoch)
        return {"loss": self.objective.loss(step)}

    def answers(self, indices: Sequence[int]) -> Answers:
        """The answers of some examples."""
        return self._answers_and_states(indices)[0]

    def hidden(self, indices: Sequence[int]) -> Tensor:
        """States `(N, d)` of the objective's layer at the answer tokens; the layers above do not run."""
        batch, _ = self._batch(indices)
        seen: dict[str, Any] = {}
        with self._replayed(indices), skipped(self.layers, self.last, self.returns_tuple):
            hook = self.layers[self.last - 1].register_forward_hook(lambda _m, _i, out: seen.__setitem__("state", out))
            try:
                hidden_states(self.causal_lm, batch)
            finally:
                hook.remove()
        state = seen["state"][0] if isinstance(seen["state"], tuple) else seen["state"]
        self._count(batch, self.last, 0)
        return state[batch.targets].float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def run_frozen(self, objective: Objective) -> None:
        """Answers, and states of the objective's layer, before anything is trained (LoRA adds nothing yet), kept by example."""
        if objective.reference and not self.plain:
            raise ModelError(
                f"{type(self.causal_lm).__name__} changes its logits after the output layer; methods that compare with the "
                "frozen model's distribution are not there for such models"
            )
        for role in objective.reference:
            for batch in self._plan(role):
                answers, states = self._answers_and_states(batch)
                assert states is not None
                self.frozen.update(zip(batch, zip(*(self._split(rows, batch) for rows in (-answers.token_nll, states)))))
        for role in objective.hidden_reference:
            for batch in self._plan(role):
                self.frozen_states.update(zip(batch, self._split(self.hidden(batch), batch)))

    def _answers_and_states(self, indices: Sequence[int]) -> tuple[Answers, Tensor | None]:
        """Answers, and the states `(N, d)` that they are predicted from where the output layer alone makes logits of them."""
        batch, examples = self._batch(indices)
        states = None
        with self._replayed(indices):
            if self.plain:
                states = hidden_states(self.causal_lm, batch)[batch.predicting]
                logits = self.causal_lm.get_output_embeddings()(states)
            else:
                logits = all_logits(self.causal_lm, batch)[batch.predicting]
        self._count(batch, len(self.layers), len(logits))
        lengths = torch.tensor([example.n_scored for example in examples], device=logits.device)
        rows = torch.repeat_interleave(torch.arange(len(examples), device=logits.device), lengths)
        targets = batch.input_ids[batch.targets]
        return Answers(logits.float(), targets, rows, len(examples), self._frozen(indices)), states

    def _plan(self, role: str) -> list[list[int]]:
        start = self.roles[role].start
        return [[start + i for i in of] for of in plan_batches([self.examples[i] for i in self.roles[role]], PASS_TOKENS)]

    def _split(self, values: Tensor, indices: Sequence[int]) -> list[Tensor]:
        return [part.clone() for part in values.split([self.examples[i].n_scored for i in indices])]

    def _frozen(self, indices: Sequence[int]) -> Frozen | None:
        if not all(i in self.frozen for i in indices):
            return None
        log_probs, states = zip(*(self.frozen[i] for i in indices))
        return Frozen(torch.cat(log_probs), torch.cat(states), self.frozen_output)

    def _batch(self, indices: Sequence[int]) -> tuple[Batch, list[Example]]:
        examples = [self.examples[i] for i in indices]
        return pad_batch(examples, self.causal_lm.device), examples

    def _replayed(self, indices: Sequence[int]) -> ExitStack:
        stack = ExitStack()
        if self.replay is not None:
            stack.enter_context(self.replay.batch(indices))
        return stack

    def _count(self, batch: Batch, last: int, scored: int) -> None:
        """Add the floating-point operations of one pass."""
        tokens = float(batch.attention_mask.sum())
        run = sum(self.sizes[self.first if self.replay is not None else 0 : last])
        self.flops += 2 * (tokens * run + scored * self.output_size)
        if torch.is_grad_enabled():
            again = 4 if self.full else 2
            self.flops += again * (tokens * sum(self.sizes[self.first : last]) + scored * self.output_size)


@torch.no_grad()
def answer_states(model: Any, examples: Sequence[Example]) -> list[Tensor]:
    """Last hidden states `(n, d)` at the positions that predict each example's scored tokens.

    Raises:
        ModelError: the output layer alone does not make the model's logits of them.
    """
    if not has_plain_output(model, examples[0]):
        raise ModelError(f"{type(model).__name__} changes its logits after the output layer; this method is not there for it")
    states: dict[int, Tensor] = {}
    for indices in plan_batches(examples, PASS_TOKENS):
        batch = pad_batch([examples[i] for i in indices], model.device)
        parts = hidden_states(model, batch)[batch.predicting].split([examples[i].n_scored for i in indices])
        states.update(zip(indices, (part.clone() for part in parts)))
    return [states[i] for i in range(len(examples))]


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


def check_tracker(name: str) -> str:
    """Return `name`; `ConfigError` if it is no tracker, `MissingExtraError` if its package is not installed."""
    from importlib.util import find_spec

    if name not in TRACKERS:
        raise ConfigError(f"report_to is {name!r}; must be one of {', '.join(TRACKERS)}")
    if name != "none" and find_spec(name) is None:
        raise MissingExtraError(name, "track", f"--report-to {name}")
    return name


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
