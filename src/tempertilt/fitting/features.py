"""Features: one pass of the frozen model over all examples, kept in a content-addressed store.

For every scored token `y_{t+1}` of an example the store holds the pooled hidden state `c_t` (METHOD, section 4) and the
token's id, and for the evidence gate, if asked for, a lower layer's state of every token. An example is known by a hash of its
tokens, so a changed input runs again and everything else is read.

Batches and shards are planned before anything runs, from the examples alone. Whoever runs a shard, in one process or on many
machines, runs the same batches of it, so writes the same bytes; what is lost with a worker is the shard that it was filling.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tempertilt.config.keys import PROTOCOLS
from tempertilt.config.options import Options, option
from tempertilt.data.batches import example_key, plan_batches
from tempertilt.data.examples import Example
from tempertilt.errors import DataError, TemperTiltError
from tempertilt.fitting.store import FORMAT
from tempertilt.fitting.store import FeatureStore as FeatureStore
from tempertilt.fitting.workers import STORED, Local, Shard, Work, Workers
from tempertilt.guidance.tilt import POOLINGS


@dataclass(frozen=True)
class FeatureConfig(Options):
    """How features are extracted and kept."""

    pooling: str = option("mean", "mean (causal running mean, the paper) or last", choices=POOLINGS)
    feature_dtype: str = option("float32", "type of the stored features", choices=tuple(STORED), advanced=True)
    batch_tokens: int = option(2048, "padded tokens in one batch of the base model", ge=1, advanced=True)
    shard_mib: float = option(64, "size at which a shard of features is written, MiB", gt=0, advanced=True)


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
    """The directory name of a store: what decides a feature's value besides the tokens, and the formats of files and step."""
    dtype = str(model.dtype).removeprefix("torch.")
    states = "" if state_layer is None else f"-layer{state_layer}"
    version = f"v{FORMAT.partition('/')[2]}.{PROTOCOLS['features']}"
    return f"{fingerprint}-{config.pooling}-{dtype}-{model.device.type}-{config.feature_dtype}{states}-{version}"


def extract_features(
    model: Any,
    examples: Sequence[Example],
    store: FeatureStore,
    config: FeatureConfig,
    *,
    state_layer: int | None = None,
    workers: Workers | None = None,
    progress: bool = True,
) -> tuple[Features, ExtractionStats]:
    """Run the frozen model's body once over the examples that the store lacks; return the features of all of them.

    With `state_layer` the states of all tokens after so many decoder layers are kept too (`Features.states`). Where the
    workers are several processes, each gives the same examples; the first one's store decides what is run.

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
    workers = workers or Local()
    keys = [example_key(example) for example in examples]
    width = model.get_output_embeddings().weight.shape[-1]
    plan: list[list[list[int]]] = workers.share(lambda: plan_shards(examples, keys, store, config, width, state_layer))
    shards = [Shard([[examples[i] for i in batch] for batch in batches]) for batches in plan]
    total = sum(shard.tokens for shard in shards)
    started = time.perf_counter()
    with tqdm(total=total, unit=" tokens", desc="features", disable=not progress or not shards, unit_scale=True) as bar:
        workers.extract(model, Work(shards, store.directory, config, state_layer), bar.update)
    store.refresh()
    if missing := next((key for key in keys if key not in store), None):
        raise TemperTiltError(
            f"the features of example {missing} are not in {str(store.directory)!r} although they have been run: with several "
            "machines the cache must be on a disk that all of them share; name one in TEMPERTILT_CACHE"
        )
    run = sum(len(batch) for batches in plan for batch in batches)
    stats = ExtractionStats(len(examples), len(examples) - run, total, time.perf_counter() - started, workers.count)
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
