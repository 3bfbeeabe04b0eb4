"""Make a model know a corpus: LoRA (by peft) on the upper layers, with the frozen lower layers run only once (`replay`)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from tempertilt.config.keys import key_of
from tempertilt.config.options import Options, option
from tempertilt.data.batches import example_key
from tempertilt.data.examples import Example
from tempertilt.environment import Clock
from tempertilt.errors import DataError
from tempertilt.models.adapter import write_tokenizer
from tempertilt.models.base import BaseModel, decoder_layers
from tempertilt.storage import move_files, remove_unfinished, work_directory
from tempertilt.training.card import CARD, CURVE, finetuned_card, loss_curve
from tempertilt.training.config import TrainConfig, TrainRun
from tempertilt.training.loop import train
from tempertilt.training.runner import Step, first_trained

log = logging.getLogger("tempertilt")

REPORT = "finetune.json"
PEFT_CONFIG = "adapter_config.json"
MEGABATCH = 16  # batches whose examples are sorted by length together


@dataclass(frozen=True)
class FinetuneConfig(Options):
    """How a model is made to know a corpus. The base model stays in eval mode; only LoRA dropout is random."""

    lora_rank: int = option(32, "rank of the LoRA matrices", ge=1)
    lora_alpha: int = option(64, "LoRA's alpha", ge=1, advanced=True)
    lora_dropout: float = option(0.0, "LoRA's dropout", ge=0, lt=1, advanced=True)
    train_layers: float = option(0.5, "share of the layers that train, from the top", gt=0, le=1, advanced=True)
    learning_rate: float = option(1e-3, "AdamW's highest learning rate", gt=0)
    warmup_ratio: float = option(0.1, "share of the steps with a rising rate; then cosine decay", ge=0, lt=1, advanced=True)
    weight_decay: float = option(0.0, "AdamW's weight decay", ge=0, advanced=True)
    epochs: int = option(7, "passes over the records", ge=1)
    train_batch_size: int = option(8, "records in a batch", ge=1)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", gt=0, advanced=True)
    seed: int = option(0, "seed of LoRA's initial weights and of the order of the records", ge=0)
    cache_lower_layers: bool = option(True, "run the frozen lower layers once and keep their states", advanced=True)
    max_cache_gib: float = option(4.0, "keep them only up to this size, GiB", ge=0, advanced=True)

    @property
    def training(self) -> TrainConfig:
        """What the training loop needs of it."""
        return TrainConfig(**{name: value for name, value in asdict(self).items() if name != "seed"})

    def rate(self, step: int, steps: int) -> float:
        """Share of the highest learning rate: linear warm-up whose first step trains already, then a half cosine to 0."""
        warmup = max(1, round(self.warmup_ratio * steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass(frozen=True)
class FinetuneResult:
    """A model with trained LoRA weights (`model.save_pretrained` writes the adapter) and how it was trained.

    Attributes:
        model: with trained LoRA weights; its `save_pretrained` writes the adapter.
        losses: by epoch, the mean over all scored tokens, nats a token.
        step_losses: by step, the mean over the batch's scored tokens.
        seconds: wall time, the pass of the frozen lower layers included.
        tokens_per_second: all tokens, prompts included.
        num_parameters: trainable parameters.
        cached: whether the frozen lower layers ran only once.
        trained_layers: numbers of the layers that trained.
    """

    model: Any
    losses: list[float]
    step_losses: list[float]
    seconds: float
    tokens_per_second: float
    num_parameters: int
    cached: bool
    trained_layers: list[int]


class Likelihood:
    """The objective: the negative log-likelihood of all scored tokens, mean over a batch. `history` keeps it by step."""

    reference: tuple[str, ...] = ()
    hidden_layer: int | None = None
    hidden_reference: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.history: list[tuple[Tensor, int]] = []

    def loss(self, step: Step) -> Tensor:
        """Mean over the batch's scored tokens, nats a token."""
        answers = step.answers("records")
        loss = answers.mean_nll
        self.history.append((loss.detach(), len(answers.targets)))
        return loss

    def losses(self, steps: int) -> list[float]:
        """The mean over all scored tokens of each epoch of so many steps."""
        losses, counts = (torch.tensor(values, dtype=torch.float64) for values in zip(*self.history))
        epochs = zip((losses * counts).split(steps), counts.split(steps))
        return [float(total.sum() / count.sum()) for total, count in epochs]


def finetune(
    model: Any, examples: Sequence[Example], config: FinetuneConfig, *, work_dir: Path | None = None, progress: bool = True
) -> FinetuneResult:
    """Train LoRA matrices on all linear modules of the upper layers, on the examples' scored tokens.

    The loss of a batch is the mean over its scored tokens, in float32. The same seed gives the same weights on one machine.

    Args:
        model: a causal LM of transformers; peft wraps its modules in place, its own weights do not change.
        work_dir: where training may write; None is a temporary folder.

    Raises:
        DataError: there are no examples.
        ModelError: the layers can't be found, or have no linear module.
        TemperTiltError: the loss is no longer finite.
    """
    if not examples:
        raise DataError("there are no examples to train on")
    clock, objective = Clock(), Likelihood()
    batches = SimilarLengths([len(example) for example in examples], config.train_batch_size, config.seed)
    with clock("finetune"), nullcontext(work_dir) if work_dir else TemporaryDirectory() as directory:
        run = TrainRun(Path(directory), config.seed, run_name="finetune", progress=progress)
        trained = train(model, {"records": examples}, objective, config.training, run, batches, config.rate)
    seconds, layers = clock.seconds["finetune"], len(decoder_layers(model))
    return FinetuneResult(
        model=trained.model,
        losses=objective.losses(len(batches)),
        step_losses=[round(float(loss), 6) for loss, _ in objective.history],
        seconds=seconds,
        tokens_per_second=config.epochs * sum(map(len, examples)) / seconds,
        num_parameters=trained.parameters,
        cached=trained.cached,
        trained_layers=list(range(first_trained(layers, config.train_layers), layers)),
    )


def save_finetuned(result: FinetuneResult, directory: Path, report: dict[str, Any], base: BaseModel) -> None:
    """Write the PEFT adapter, its tokenizer, card, loss curve and `finetune.json` into `directory`, whole files only.

    All files are written before the first is put in place. PEFT's configuration and the report are taken away first and go last,
    so that a save that is killed is never taken for a finished one.

    Args:
        base: the model that was trained.
    """
    with work_directory(directory, PEFT_CONFIG) as work:
        result.model.save_pretrained(work)
        _name_base(work / PEFT_CONFIG, base.name)
        write_tokenizer(base.tokenizer, work)
        (work / CURVE).write_text(loss_curve(result.step_losses), encoding="utf-8")
        (work / CARD).write_text(finetuned_card(base.name, base.peft_adapter, result.losses, report), encoding="utf-8")
        (work / REPORT).write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
    for name in (REPORT, PEFT_CONFIG):
        (directory / name).unlink(missing_ok=True)
    move_files(work, directory, PEFT_CONFIG, REPORT)
    remove_unfinished(directory)


def _name_base(path: Path, name: str) -> None:
    """Have PEFT's configuration name the base as the user does, and list modules in an order that is always the same."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": name, "target_modules": sorted(config["target_modules"])}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def finetune_key(fingerprint: str, examples: Sequence[Example], config: FinetuneConfig) -> str:
    """The key of an adapter: model, tokens, options."""
    keys = [example_key(example) for example in examples]
    return key_of("examples", "finetune", fingerprint=fingerprint, examples=keys, config=asdict(config))


def is_finished(directory: Path, key: str) -> bool:
    """Whether `directory` holds the adapter `key`, completely."""
    try:
        report = json.loads((directory / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and report.get("key") == key and (directory / PEFT_CONFIG).is_file()


class SimilarLengths(Sampler[list[int]]):
    """Every index once an epoch, in random batches of similar length; each epoch draws anew.

    Args:
        lengths: of the examples, tokens.
        batch_size: examples in a batch; the last one of a group may have fewer.
        seed: of the order.
    """

    drop_last = False

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size = lengths, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.lengths), generator=self.generator).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(order), MEGABATCH * self.batch_size):
            group = sorted(order[start : start + MEGABATCH * self.batch_size], key=lambda i: -self.lengths[i])
            batches += [group[i : i + self.batch_size] for i in range(0, len(group), self.batch_size)]
        for i in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[i]
