"""How a method trains, and the circumstances of one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tempertilt.config.options import Options, option
from tempertilt.errors import ConfigError, MissingExtraError

TRACKERS = ("none", "tensorboard", "wandb", "trackio")
SCHEDULES = ("constant", "linear", "cosine")


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


def check_tracker(name: str) -> str:
    """Return `name`; `ConfigError` if it is no tracker, `MissingExtraError` if its package is not installed."""
    from importlib.util import find_spec

    if name not in TRACKERS:
        raise ConfigError(f"report_to is {name!r}; must be one of {', '.join(TRACKERS)}")
    if name != "none" and find_spec(name) is None:
        raise MissingExtraError(name, "track", f"--report-to {name}")
    return name
