"""Features: one pass of the frozen model over all examples, kept in a content-addressed store.

For every scored token `y_{t+1}` of an example the store holds the pooled hidden state `c_t` (METHOD, section 4) and the
token's id, and for the evidence gate, if asked for, a lower layer's state of every token. An example is known by a hash of its
tokens, so a changed input runs again and everything else is read.

Batches and shards are planned before anything runs, from the examples alone. Whoever runs a shard, in one process or on many
machines, runs the same batches of it, so writes the same bytes; what is lost with a worker is the shard that it was filling.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tempertilt.data.examples import Example
from tempertilt.errors import ConfigError, DataError, ModelError, TemperTiltError
from tempertilt.fitting.store import FORMAT, write_shard
from tempertilt.fitting.store import FeatureStore as FeatureStore
from tempertilt.guidance.pooling import check_pooling, pool
from tempertilt.models.base import BaseModel, body_of, decoder_layers, last_hidden_state

STORED = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class FeatureConfig:
    """How features are extracted and kept."""

    pooling: str = field(default="mean", metadata={"help": "mean (causal running mean, the paper) or last"})
    feature_dtype: str = field(default="float32", metadata={"help": "type of the stored features: float32 or float16"})
    batch_tokens: int = field(default=2048, metadata={"help": "padded tokens in one batch of the base model"})
    shard_mib: float = field(default=64, metadata={"help": "size at which a shard of features is written, MiB"})

    def __post_init__(self) -> None:
        check_pooling(self.pooling)
        if self.feature_dtype not in STORED:
            raise ConfigError(f"feature_dtype is {self.feature_dtype!r}; valid are {', '.join(STORED)}")
        if self.batch_tokens < 1 or not self.shard_mib > 0:
            raise ConfigError(f"batch_tokens is {self.batch_tokens}, shard_mib {self.shard_mib}; valid are >= 1 and > 0")


@dataclass(frozen=True)
class ExtractionStats:
    """What one extraction did. `tokens` are real tokens run through the model, padding not counted; `workers` shared them."""

    examples: int
    reused: int
    tokens: int
    seconds: float
    workers: int = 1


class Features:
    """The features of a list of examples, in its order, read from a store.

    Args:
        store: holds every one of `keys`.
        keys: one for each example.
        documents: the document that each example is of.
    """

    def __init__(self, store: FeatureStore, keys: Sequence[str], documents: Sequence[str]) -> None:
        self.store, self.keys, self.documents = store, list(keys), list(documents)
        self.lengths = np.array([store.places[key].length for key in self.keys], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def subset(self, indices: Sequence[int]) -> Features:
        """The features of some of the examples."""
        return Features(self.store, [self.keys[i] for i in indices], [self.documents[i] for i in indices])

    def gather(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Features `(N, d)` float32 and target token ids `(N,)` int64 of the examples at `indices`, concatenated."""
        rows = [self.store.rows(self.keys[i]) for i in indices]
        features, targets = zip(*rows)
        return torch.cat(features).float(), torch.cat(targets).long()

    def states(self) -> list[Tensor]:
        """A lower layer's states of each example's tokens, `(T, d)` float16, views."""
        return [self.store.states(key) for key in self.keys]

    def target_tokens(self) -> Tensor:
        """The distinct target token ids, ascending, int64."""
        distinct: Tensor = torch.cat([self.store.rows(key)[1].long().unique() for key in self.keys]).unique(sorted=True)
        return distinct

    @property
    def hidden_size(self) -> int:
        """`d`."""
        return self.store.rows(self.keys[0])[0].shape[1]


def store_name(fingerprint: str, model: Any, config: FeatureConfig, state_layer: int | None = None) -> str:
    """The directory name of a store: all that decides a feature's value besides the tokens, and the format of its files."""
    dtype = str(model.dtype).removeprefix("torch.")
    states = "" if state_layer is None else f"-layer{state_layer}"
    version = FORMAT.partition("/")[2]
    return f"{fingerprint}-{config.pooling}-{dtype}-{model.device.type}-{config.feature_dtype}{states}-v{version}"


def example_key(example: Example) -> str:
    """A hash of an example's tokens and of which are scored, 32 hex digits."""
    digest = hashlib.blake2b(example.input_ids.astype(np.int32).tobytes(), digest_size=16)
    digest.update(np.packbits(example.scored).tobytes())
    return digest.hexdigest()


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


class Engine(Protocol):
    """Where the work is done. All processes that share one engine call the same methods in the same order."""

    workers: int
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

    workers, first = 1, True

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


def extract_features(
    model: Any,
    examples: Sequence[Example],
    store: FeatureStore,
    config: FeatureConfig,
    *,
    state_layer: int | None = None,
    engine: Engine | None = None,
    progress: bool = True,
) -> tuple[Features, ExtractionStats]:
    """Run the frozen model's body once over the examples that the store lacks; return the features of all of them.

    With `state_layer` the states of all tokens after so many decoder layers are kept too (`Features.states`). Where the
    engine has several processes, each gives the same examples; the first one's store decides what is run.

    The shards are planned over all examples, whatever the store holds: a run that goes on after a kill makes the same batches,
    so the same bytes, as one that was not disturbed. Memory holds the token ids (4 bytes a token), one batch, and one shard
    for each worker.

    Raises:
        DataError: there are no examples.
        ModelError: the model gives numbers that are not finite.
        TemperTiltError: a shard is not in the store's directory when all have been run.
    """
    if not examples:
        raise DataError("there are no examples to extract features from")
    engine = engine or Local()
    keys = [example_key(example) for example in examples]
    width = model.get_output_embeddings().weight.shape[-1]
    plan: list[list[list[int]]] = engine.share(lambda: plan_shards(examples, keys, store, config, width, state_layer))
    shards = [Shard([[examples[i] for i in batch] for batch in batches]) for batches in plan]
    total = sum(shard.tokens for shard in shards)
    started = time.perf_counter()
    with tqdm(total=total, unit=" tokens", desc="features", disable=not progress or not shards, unit_scale=True) as bar:
        engine.extract(model, Work(shards, store.directory, config, state_layer), bar.update)
    store.refresh()
    if missing := next((key for key in keys if key not in store), None):
        raise TemperTiltError(
            f"the features of example {missing} are not in {str(store.directory)!r} although they have been run: with several "
            "machines the cache must be on a disk that all of them share; name one in TEMPERTILT_CACHE"
        )
    run = sum(len(batch) for batches in plan for batch in batches)
    stats = ExtractionStats(len(examples), len(examples) - run, total, time.perf_counter() - started, engine.workers)
    return Features(store, keys, [example.document for example in examples]), stats


def plan_shards(
    examples: Sequence[Example],
    keys: Sequence[str],
    store: FeatureStore,
    config: FeatureConfig,
    width: int,
    state_layer: int | None = None,
) -> list[list[list[int]]]:
    """Indices of the examples in batches, and batches in shards of about `config.shard_mib`, without what the store holds.

    Batches and shards are those of all examples, each taken once, and then lose what is there: what a killed run left is a
    number of whole shards. `width` is the model's hidden size.
    """
    places: dict[str, int] = {}
    for i, key in enumerate(keys):
        places.setdefault(key, i)
    first = list(places.values())
    size, limit = 0, config.shard_mib * 2**20
    row, state = width * STORED[config.feature_dtype].itemsize, 0 if state_layer is None else 2 * width
    shards: list[list[list[int]]] = []
    for batch in plan_batches([examples[i] for i in first], config.batch_tokens):
        if not shards or size >= limit:
            shards.append([])
            size = 0
        shards[-1].append([first[i] for i in batch])
        size += sum(examples[first[i]].n_scored * row + len(examples[first[i]]) * state for i in batch)
    lacking = [[[i for i in batch if keys[i] not in store] for batch in batches] for batches in shards]
    return [kept for batches in lacking if (kept := [batch for batch in batches if batch])]


def plan_batches(examples: Sequence[Example], batch_tokens: int) -> list[list[int]]:
    """Indices of the examples in batches of similar length, longest first, at most `batch_tokens` padded tokens each."""
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]))
    batches: list[list[int]] = []
    width = 0
    for i in order:
        if not batches or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
            width = len(examples[i])
        batches[-1].append(i)
    return batches


class Batch(NamedTuple):
    """Right-padded examples (padding 0), each `(B, T)`: int64 ids and mask; bool `targets`, True at scored tokens."""

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor

    @property
    def predicting(self) -> Tensor:
        """`(B, T)` bool: the positions whose logits predict a scored token, in the order of `targets`."""
        return torch.roll(self.targets, -1, dims=1)  # the first token is never scored, so nothing wraps around


def pad_batch(examples: Sequence[Example], device: torch.device) -> Batch:
    """The examples as one batch on `device`."""
    shape = len(examples), max(len(example) for example in examples)
    ids, mask, targets = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = example.input_ids
        mask[row, : len(example)] = 1
        targets[row, : len(example)] = example.scored
    return Batch(*(torch.from_numpy(array).to(device) for array in (ids, mask, targets)))


@torch.inference_mode()
def batch_features(
    model: Any, examples: Sequence[Example], config: FeatureConfig, state_layer: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pooled states `(N, d)` at the positions that predict scored tokens, those tokens `(N,)` int32, and lower states, on CPU.

    Rows go example by example, position by position. The lower states `(M, d)` are float16, of all tokens after `state_layer`
    decoder layers; None without it.
    """
    batch = pad_batch(examples, model.device)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    with _watch(model, state_layer) as seen:
        state = last_hidden_state(body_of(model)(**inputs))
    lower = seen[0][batch.attention_mask.to(seen[0].device).bool()].to("cpu", torch.float16) if seen else None
    pooled = pool(state, batch.attention_mask.to(state.device), check_pooling(config.pooling))
    features = pooled[batch.predicting.to(state.device)].to("cpu", STORED[config.feature_dtype])
    if not bool(features.isfinite().all()):
        raise ModelError(
            f"the model's hidden states are not finite in {examples[0].source} or its batch: "
            "use --dtype float32 or bfloat16, or --feature-dtype float32"
        )
    return features, batch.input_ids[batch.targets].to("cpu", torch.int32), lower


@contextmanager
def _watch(model: Any, layer: int | None) -> Iterator[list[Tensor]]:
    """Inside, the list gets the `(B, T, d)` states after `layer` decoder layers; it stays empty for None."""
    seen: list[Tensor] = []
    if layer is None:
        yield seen
        return
    hook = decoder_layers(model)[layer - 1].register_forward_hook(lambda _m, _i, out: seen.append(last_hidden_state(out)))
    try:
        yield seen
    finally:
        hook.remove()


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
