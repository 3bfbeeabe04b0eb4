"""Make a model know a corpus: LoRA (by peft) on the upper layers, with the frozen lower layers run only once (`replay`)."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from tempertilt.data.batches import example_key, pad_batch
from tempertilt.data.examples import Example
from tempertilt.errors import ConfigError, DataError, TemperTiltError
from tempertilt.models.base import decoder_layers
from tempertilt.storage import make_dir, remove_unfinished, write_text
from tempertilt.training.replay import Replay, all_logits, has_plain_output, hidden_states, with_lora

log = logging.getLogger("tempertilt")

REPORT = "finetune.json"
MEGABATCH = 16  # batches whose examples are sorted by length together


@dataclass(frozen=True)
class FinetuneConfig:
    """How a model is made to know a corpus. The base model stays in eval mode; only LoRA dropout is random."""

    lora_rank: int = field(default=32, metadata={"help": "rank of the LoRA matrices"})
    lora_alpha: int = field(default=64, metadata={"help": "LoRA's alpha"})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA's dropout"})
    train_layers: float = field(default=0.5, metadata={"help": "share of the layers that train, from the top"})
    learning_rate: float = field(default=1e-3, metadata={"help": "AdamW's highest learning rate"})
    warmup_ratio: float = field(default=0.1, metadata={"help": "share of the steps with a rising rate; then cosine decay"})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's weight decay"})
    epochs: int = field(default=7, metadata={"help": "passes over the records"})
    train_batch_size: int = field(default=8, metadata={"help": "records in a batch"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm"})
    seed: int = field(default=0, metadata={"help": "seed of LoRA's initial weights and of the order of the records"})
    cache_lower_layers: bool = field(default=True, metadata={"help": "run the frozen lower layers once and keep their states"})
    max_cache_gib: float = field(default=4.0, metadata={"help": "keep them only up to this size, GiB"})

    def __post_init__(self) -> None:
        for name in ("lora_rank", "lora_alpha", "epochs", "train_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; valid is a whole number >= 1")
        if not 0 < self.train_layers <= 1:
            raise ConfigError(f"train_layers is {self.train_layers}; valid is a number in (0, 1]")
        if not self.learning_rate > 0 or not self.max_grad_norm > 0:
            raise ConfigError(f"learning_rate is {self.learning_rate}, max_grad_norm {self.max_grad_norm}; valid are numbers > 0")
        if not 0 <= self.lora_dropout < 1 or not 0 <= self.warmup_ratio < 1:
            raise ConfigError(
                f"lora_dropout is {self.lora_dropout}, warmup_ratio {self.warmup_ratio}; valid are numbers in [0, 1)"
            )
        if self.weight_decay < 0 or self.max_cache_gib < 0:
            raise ConfigError(f"weight_decay is {self.weight_decay}, max_cache_gib {self.max_cache_gib}; valid are numbers >= 0")


@dataclass(frozen=True)
class FinetuneResult:
    """A model with trained LoRA weights (`model.save_pretrained` writes the adapter) and how it was trained.

    `losses` are mean token losses of the epochs, nats; `tokens_per_second` counts all tokens, prompts included.
    """

    model: Any
    losses: list[float]
    seconds: float
    tokens_per_second: float
    num_parameters: int
    cached: bool
    trained_layers: list[int]


def finetune(model: Any, examples: Sequence[Example], config: FinetuneConfig, *, progress: bool = True) -> FinetuneResult:
    """Train LoRA matrices on all linear modules of the upper layers, on the examples' scored tokens.

    The loss of a batch is the mean over its scored tokens, in float32. The same seed gives the same weights on one machine.

    Args:
        model: a causal LM of transformers; peft wraps its modules in place, its own weights do not change.

    Raises:
        DataError: there are no examples.
        ModelError: the layers can't be found, or have no linear module.
        TemperTiltError: the loss is no longer finite.
    """
    if not examples:
        raise DataError("there are no examples to train on")
    started = time.perf_counter()
    torch.manual_seed(config.seed)
    layers = decoder_layers(model)
    first = len(layers) - max(1, round(config.train_layers * len(layers)))
    peft_model = with_lora(model, layers, first, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout)
    replay = Replay.of(model, layers, first, examples, config.max_cache_gib) if first and config.cache_lower_layers else None
    loss_of = _loss_function(model, examples[0], replay)
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    steps = config.epochs * math.ceil(len(examples) / config.train_batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, config.warmup_ratio))
    generator = torch.Generator().manual_seed(config.seed)
    losses = []
    peft_model.train(config.lora_dropout > 0)
    with tqdm(
        total=config.epochs * sum(map(len, examples)),
        unit=" tokens",
        unit_scale=True,
        desc="finetune",
        disable=not progress,
    ) as bar:
        for epoch in range(1, config.epochs + 1):
            total = count = 0.0
            for batch in shuffled_batches([len(example) for example in examples], config.train_batch_size, generator):
                chosen = [examples[i] for i in batch]
                loss = loss_of(chosen, batch)
                if not bool(loss.isfinite()):
                    raise TemperTiltError(
                        f"the loss is {float(loss)} in epoch {epoch}; lower learning_rate ({config.learning_rate})"
                    )
                loss.backward()
                nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                scored = sum(example.n_scored for example in chosen)
                total, count = total + float(loss.detach()) * scored, count + scored
                bar.update(sum(map(len, chosen)))
            losses.append(total / count)
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    peft_model.eval()
    seconds = time.perf_counter() - started
    return FinetuneResult(
        model=peft_model,
        losses=losses,
        seconds=seconds,
        tokens_per_second=config.epochs * sum(map(len, examples)) / seconds,
        num_parameters=sum(parameter.numel() for parameter in trained),
        cached=replay is not None,
        trained_layers=list(range(first, len(layers))),
    )


def save_finetuned(result: FinetuneResult, directory: Path, report: dict[str, Any]) -> None:
    """Write the PEFT adapter and `finetune.json` into `directory`; `adapter_config.json` goes last, whole files only."""
    make_dir(directory)
    remove_unfinished(directory)
    with TemporaryDirectory(prefix=".unfinished-", dir=directory) as work:
        result.model.save_pretrained(work)
        written = sorted(Path(work).iterdir(), key=lambda path: path.name == "adapter_config.json")
        (directory / "adapter_config.json").unlink(missing_ok=True)
        write_text(directory / REPORT, json.dumps(report, indent=2, default=str) + "\n")
        for path in written:
            path.replace(directory / path.name)


def finetune_key(fingerprint: str, examples: Sequence[Example], config: FinetuneConfig) -> str:
    """A hash of everything that decides the adapter: model, tokens, options; 32 hex digits."""
    content = {
        "fingerprint": fingerprint,
        "examples": [example_key(example) for example in examples],
        "config": asdict(config),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def is_finished(directory: Path, key: str) -> bool:
    """Whether `directory` holds the adapter `key`, completely."""
    try:
        report = json.loads((directory / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return report.get("key") == key and (directory / "adapter_config.json").is_file()


def shuffled_batches(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Every index once, in random batches of similar length."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for start in range(0, len(order), MEGABATCH * batch_size):
        group = sorted(order[start : start + MEGABATCH * batch_size], key=lambda i: -lengths[i])
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _rate(step: int, steps: int, warmup_ratio: float) -> float:
    """Share of the highest learning rate: linear warm-up, then a half cosine to 0."""
    warmup = max(1, round(warmup_ratio * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


LossFunction = Callable[[Sequence[Example], Sequence[int]], Tensor]


def _loss_function(model: Any, probe: Example, replay: Replay | None) -> LossFunction:
    """The mean loss of a batch's scored tokens; the output layer runs at those only, where it is a plain one."""
    plain = has_plain_output(model, probe)

    def loss(examples: Sequence[Example], indices: Sequence[int]) -> Tensor:
        batch = pad_batch(examples, model.device)
        with replay.batch(indices) if replay else nullcontext():
            if plain:
                logits = model.get_output_embeddings()(hidden_states(model, batch)[batch.predicting])
            else:
                logits = all_logits(model, batch)[batch.predicting]
        return F.cross_entropy(logits.float(), batch.input_ids[batch.targets])

    return loss
