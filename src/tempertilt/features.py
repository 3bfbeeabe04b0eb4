"""Features: one pass of the frozen model over all examples, kept in a content-addressed store.

For every scored token `y_{t+1}` of an example the store holds the pooled hidden state `c_t` (METHOD, section 4) and the
token's id, and for the evidence gate, if asked for, a lower layer's state of every token. An example is known by a hash of its
tokens, so a changed input runs again and everything else is read. A shard file is written whole or not at all: a killed run loses
at most the shard that it was filling.
"""

from __future__ import annotations

import hashlib
import logging
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from tempertilt.base import body_of, decoder_layers, last_hidden_state
from tempertilt.data.examples import Example
from tempertilt.errors import ConfigError, DataError, ModelError
from tempertilt.pooling import check_pooling, pool
from tempertilt.storage import make_dir, remove_unfinished, write_whole

log = logging.getLogger("tempertilt")

FORMAT = "tempertilt-features/2"
STORED = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class FeatureConfig:
    """How features are extracted and kept."""

    pooling: str = field(default="mean", metadata={"help": "mean (causal running mean, the paper) or last"})
    feature_dtype: str = field(default="float32", metadata={"help": "type of the stored features: float32 or float16"})
    batch_tokens: int = field(default=2048, metadata={"help": "padded tokens in one batch of the base model"})
    shard_mib: int = field(default=64, metadata={"help": "size at which a shard of features is written, MiB"})

    def __post_init__(self) -> None:
        check_pooling(self.pooling)
        if self.feature_dtype not in STORED:
            raise ConfigError(f"feature_dtype is {self.feature_dtype!r}; valid are {', '.join(STORED)}")
        if self.batch_tokens < 1 or self.shard_mib < 1:
            raise ConfigError(f"batch_tokens is {self.batch_tokens}, shard_mib {self.shard_mib}; valid are whole numbers >= 1")


class Place(NamedTuple):
    """Where an example's features are: rows `start:start + length` of a shard; its tokens' states `first:first + tokens`."""

    shard: int
    start: int
    length: int
    first: int
    tokens: int


@dataclass(frozen=True)
class ExtractionStats:
    """What one extraction did. `tokens` are real tokens run through the model, padding not counted."""

    examples: int
    reused: int
    tokens: int
    seconds: float


class FeatureStore:
    """The shards in one directory, all of one base model, pooling and type.

    Args:
        directory: made if it does not exist. Shards that can't be read are set aside with a warning and made again.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = make_dir(directory)
        self.places: dict[str, Place] = {}
        self._paths: list[Path] = []
        self._mapped: dict[int, dict[str, Tensor]] = {}
        remove_unfinished(directory)
        for path in sorted(directory.glob("*.safetensors")):
            self._verify(path)

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def add(
        self,
        keys: Sequence[str],
        lengths: Sequence[int],
        features: Tensor,
        targets: Tensor,
        states: Tensor | None = None,
        tokens: Sequence[int] = (),
    ) -> None:
        """Write one shard: `features (N, d)`, `targets (N,)`, of examples `keys` with `lengths` rows each, N in all.

        `states (M, d)`, where there are any, are of the examples' `tokens`, M in all.
        """
        tensors = {"features": features.contiguous(), "targets": targets.contiguous()}
        tensors |= {} if states is None else {"states": states.contiguous()}
        checksum = _checksum(tensors)
        metadata = {
            "format": FORMAT,
            "keys": ",".join(keys),
            "lengths": ",".join(map(str, lengths)),
            "tokens": ",".join(map(str, tokens or [0] * len(keys))),
            "crc32": checksum,
        }
        name = hashlib.sha256(f"{metadata['keys']}{checksum}".encode()).hexdigest()[:32]
        path = self.directory / f"{name}.safetensors"
        write_whole(path, lambda temporary: save_file(tensors, temporary, metadata))
        self._register(path, metadata)

    def rows(self, key: str) -> tuple[Tensor, Tensor]:
        """Features `(n, d)` as stored and targets `(n,)` int32 of one example, views of memory-mapped shards."""
        place = self.places[key]
        tensors, rows = self._tensors(place.shard), slice(place.start, place.start + place.length)
        return tensors["features"][rows], tensors["targets"][rows]

    def states(self, key: str) -> Tensor:
        """A lower layer's states `(T, d)` float16 of all tokens of one example, a view; `(0, d)` if they were not asked for."""
        place = self.places[key]
        tensors = self._tensors(place.shard)
        return tensors.get("states", tensors["features"])[place.first : place.first + place.tokens]

    def _tensors(self, shard: int) -> dict[str, Tensor]:
        if shard not in self._mapped:
            self._mapped[shard] = _read_shard(self._paths[shard])[1]
        return self._mapped[shard]

    def _verify(self, path: Path) -> None:
        """Register a shard that an earlier run wrote, one at a time in memory; remove it if it is damaged."""
        try:
            metadata, tensors = _read_shard(path)
            if metadata.get("format") != FORMAT or metadata.get("crc32") != _checksum(tensors):
                raise ValueError("its contents do not match its checksum")
            self._register(path, metadata)
        except (SafetensorError, ValueError, OSError, KeyError) as error:
            log.warning("the feature shard %s is damaged (%s): removed, its examples are run again", path, error)
            path.unlink(missing_ok=True)

    def _register(self, path: Path, metadata: dict[str, str]) -> None:
        start = first = 0
        lengths, tokens = (map(int, metadata[name].split(",")) for name in ("lengths", "tokens"))
        for key, length, count in zip(metadata["keys"].split(","), lengths, tokens):
            self.places.setdefault(key, Place(len(self._paths), start, length, first, count))
            start, first = start + length, first + count
        self._paths.append(path)


def _read_shard(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        names = set(file.keys()) | {"features", "targets"}
        return file.metadata() or {}, {name: file.get_tensor(name) for name in sorted(names)}


def _checksum(tensors: dict[str, Tensor]) -> str:
    checksum = 0
    for _, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


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
    """The directory name of a store: all that decides a feature's value besides the tokens."""
    dtype = str(model.dtype).removeprefix("torch.")
    states = "" if state_layer is None else f"-layer{state_layer}"
    return f"{fingerprint}-{config.pooling}-{dtype}-{model.device.type}-{config.feature_dtype}{states}"


def example_key(example: Example) -> str:
    """A hash of an example's tokens and of which are scored, 32 hex digits."""
    digest = hashlib.blake2b(example.input_ids.astype(np.int32).tobytes(), digest_size=16)
    digest.update(np.packbits(example.scored).tobytes())
    return digest.hexdigest()


def extract_features(
    model: Any,
    examples: Sequence[Example],
    store: FeatureStore,
    config: FeatureConfig,
    *,
    state_layer: int | None = None,
    progress: bool = True,
) -> tuple[Features, ExtractionStats]:
    """Run the frozen model's body once over the examples that the store lacks; return the features of all of them.

    With `state_layer` the states of all tokens after so many decoder layers are kept too (`Features.states`).

    The batches are planned over all examples, whatever the store holds, and a shard holds whole batches: a run that goes
    on after a kill makes the same batches, so the same numbers, as one that was not disturbed. Memory holds the token ids
    (4 bytes a token), one batch, and one shard.

    Raises:
        DataError: there are no examples.
        ModelError: the model gives numbers that are not finite.
    """
    if not examples:
        raise DataError("there are no examples to extract features from")
    keys = [example_key(example) for example in examples]
    plan = list(_missing(plan_batches(examples, config.batch_tokens), keys, store))
    total = sum(len(examples[i]) for batch in plan for i in batch)
    started = time.perf_counter()
    writer = _ShardWriter(store, config)
    with tqdm(total=total, unit=" tokens", desc="features", disable=not progress or not plan, unit_scale=True) as bar:
        for batch in plan:
            chosen = [examples[i] for i in batch]
            writer.put([keys[i] for i in batch], chosen, *batch_features(model, chosen, config, state_layer))
            bar.update(sum(len(example) for example in chosen))
        writer.flush()
    run = sum(len(batch) for batch in plan)
    stats = ExtractionStats(len(examples), len(examples) - run, total, time.perf_counter() - started)
    return Features(store, keys, [example.document for example in examples]), stats


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


def _missing(batches: list[list[int]], keys: list[str], store: FeatureStore) -> Iterator[list[int]]:
    """The batches without the examples that the store holds or that an earlier batch runs."""
    planned: set[str] = set()
    for batch in batches:
        todo = []
        for i in batch:
            if keys[i] not in store and keys[i] not in planned:
                planned.add(keys[i])
                todo.append(i)
        if todo:
            yield todo


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


class _ShardWriter:
    """Collects batches and writes a shard when they have grown to the size asked for."""

    def __init__(self, store: FeatureStore, config: FeatureConfig) -> None:
        self.store, self.limit = store, config.shard_mib * 2**20
        self._clear()

    def _clear(self) -> None:
        self.size = 0
        self.keys: list[str] = []
        self.lengths: list[int] = []
        self.tokens: list[int] = []
        self.features: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.states: list[Tensor] = []

    def put(
        self, keys: list[str], examples: list[Example], features: Tensor, targets: Tensor, states: Tensor | None = None
    ) -> None:
        self.keys += keys
        self.lengths += [example.n_scored for example in examples]
        self.features.append(features)
        self.targets.append(targets)
        self.size += features.nbytes
        if states is not None:
            self.tokens += map(len, examples)
            self.states.append(states)
            self.size += states.nbytes
        if self.size >= self.limit:
            self.flush()

    def flush(self) -> None:
        if self.keys:
            states = torch.cat(self.states) if self.states else None
            self.store.add(self.keys, self.lengths, torch.cat(self.features), torch.cat(self.targets), states, self.tokens)
            self._clear()
