"""Who runs the base model over examples: shards of work, and workers that write them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tempertilt.data.batches import example_key, pad_batch
from tempertilt.data.examples import Example
from tempertilt.errors import ModelError
from tempertilt.fitting.store import write_shard
from tempertilt.guidance.pooling import pool
from tempertilt.models.base import BaseModel
from tempertilt.models.body_pass import body_pass

if TYPE_CHECKING:
    from tempertilt.fitting.features import FeatureConfig

STORED = {"float32": torch.float32, "float16": torch.float16}


class Shard(NamedTuple):
    """Examples whose features are written together: in batches, each of which is one pass of the model."""

    batches: list[list[Example]]

    @property
    def examples(self) -> list[Example]:
        """All examples, in the order of their rows."""
        return [example for batch in self.batches for example in batch]

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return sum(map(len, self.examples))

    @property
    def name(self) -> str:
        """A hash of the examples and of how they are batched: all that decides the shard's bytes but the model; 32 hex digits."""
        batches = (",".join(map(example_key, batch)) for batch in self.batches)
        return hashlib.sha256(";".join(batches).encode()).hexdigest()[:32]


class Work(NamedTuple):
    """What is to be run: shards, the directory that they are written into, and how."""

    shards: list[Shard]
    directory: Path
    config: FeatureConfig
    state_layer: int | None


class Workers(Protocol):
    """Where the work is done. All processes that take part call the same methods in the same order."""

    count: int
    """Processes that take part in the extraction."""

    first: bool
    """Whether this process is the one that writes and reports."""

    def load(self, make: Callable[[], BaseModel]) -> BaseModel:
        """The base model that `make` loads, ready for extraction."""

    def share(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in the first process, in all of them; the others do not call it."""

    def together(self, make: Callable[[], Any]) -> Any:
        """As `share`, for what runs the model: where the model is split over the processes, all of them call it."""

    def extract(self, model: Any, work: Work, done: Callable[[int], object]) -> None:
        """Write every shard; return when all are written. `done` is told of tokens that have been run."""

    def close(self) -> None:
        """End what was started."""


class Local:
    """One process, this one."""

    count, first = 1, True

    def load(self, make: Callable[[], BaseModel]) -> BaseModel:
        """What `make` returns."""
        return make()

    def share(self, make: Callable[[], Any]) -> Any:
        """What `make` returns."""
        return make()

    together = share

    def extract(self, model: Any, work: Work, done: Callable[[int], object]) -> None:
        """Run one shard after the other."""
        for shard in work.shards:
            run_shard(model, shard, work, done)

    def close(self) -> None:
        """There is nothing to do."""


@torch.inference_mode()
def batch_features(
    model: Any, examples: Sequence[Example], config: FeatureConfig, state_layer: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pooled states `(N, d)` at the positions that predict scored tokens, those tokens `(N,)` int32, and lower states, on CPU.

    Rows go example by example, position by position. The lower states `(M, d)` are float16, of all tokens after `state_layer`
    decoder layers; None without it.
    """
    batch = pad_batch(examples, model.device)
    state, below = body_pass(model, batch.input_ids, batch.attention_mask, state_layer)
    assert state is not None
    lower = None
    if below is not None:
        lower = below[batch.attention_mask.to(below.device).bool()].to("cpu", torch.float16)
    pooled = pool(state, batch.attention_mask.to(state.device), config.pooling)
    features = pooled[batch.predicting.to(state.device)].to("cpu", STORED[config.feature_dtype])
    if not bool(features.isfinite().all()):
        raise ModelError(
            f"the model's hidden states are not finite in {examples[0].source} or its batch: "
            "use --dtype float32 or bfloat16, or --feature-dtype float32"
        )
    return features, batch.input_ids[batch.targets].to("cpu", torch.int32), lower


def run_shard(model: Any, shard: Shard, work: Work, done: Callable[[int], object] = lambda _: None) -> None:
    """Run a shard's batches and write it; the same bytes under the same name, however often and wherever it is run."""
    parts = []
    for batch in shard.batches:
        parts.append(batch_features(model, batch, work.config, work.state_layer))
        done(sum(map(len, batch)))
    features, targets, states = zip(*parts)
    examples = shard.examples
    write_shard(
        work.directory,
        shard.name,
        [example_key(example) for example in examples],
        [example.n_scored for example in examples],
        torch.cat(features),
        torch.cat(targets),
        None if work.state_layer is None else torch.cat(states),
        [] if work.state_layer is None else list(map(len, examples)),
    )
