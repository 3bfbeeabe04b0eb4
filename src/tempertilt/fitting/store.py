"""The store of features: shard files in one directory, each named by the examples that it holds.

A shard file is written whole or not at all, and its bytes depend on nothing but its name and its tensors: any number of processes
may write into one directory, and a shard that is written twice is the same shard.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tempertilt.storage import is_readable, make_dir, remove_unfinished, write_whole, writing

log = logging.getLogger("tempertilt")

FORMAT = "tempertilt-features/3"


class Place(NamedTuple):
    """Where an example's features are: rows `start:start + length` of a shard; its tokens' states `first:first + tokens`."""

    shard: int
    start: int
    length: int
    first: int
    tokens: int


class FeatureStore:
    """The shards in one directory, all of one base model, pooling and type.

    Args:
        directory: made if it does not exist.
        verify: read every shard and check its sum; those that are damaged are removed with a warning and made again, and so is
            what a killed process left half-written. False: the store begins empty and `refresh` finds what is there.
    """

    def __init__(self, directory: Path, *, verify: bool = True) -> None:
        self.directory = make_dir(directory)
        self.places: dict[str, Place] = {}
        self._paths: list[Path] = []
        self._names: set[str] = set()
        self._mapped: dict[int, dict[str, Tensor]] = {}
        if verify:
            remove_unfinished(directory)
            for path in self._files():
                self._verify(path)

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def refresh(self) -> None:
        """Have the shards that others have written since; their checksums are not computed again."""
        for path in self._files():
            if path.name not in self._names and is_readable(path):
                self._register(path, _read_metadata(path))

    def keep(self, keys: Collection[str]) -> None:
        """Delete the shards that hold another example than these; what else they hold is run again when it is asked for."""
        for path in self._paths:
            if not set(_read_metadata(path)["keys"]) <= set(keys):
                with writing(path):
                    path.unlink(missing_ok=True)
        self.places, self._paths, self._names, self._mapped = {}, [], set(), {}
        self.refresh()

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

    def _files(self) -> list[Path]:
        """The shard files, in the order of their names; half-written ones begin with a dot and are none."""
        return sorted(path for path in self.directory.glob("*.safetensors") if not path.name.startswith("."))

    def _tensors(self, shard: int) -> dict[str, Tensor]:
        if shard not in self._mapped:
            self._mapped[shard] = _read_shard(self._paths[shard])[1]
        return self._mapped[shard]

    def _verify(self, path: Path) -> None:
        """Register a shard that an earlier run wrote, one at a time in memory; remove it if it is damaged.

        Raises:
            TemperTiltError: the shard must not be read, or is damaged and can't be removed.
        """
        if not is_readable(path):
            return
        try:
            metadata, tensors = _read_shard(path)
            if metadata.get("format") != FORMAT or metadata.get("crc32") != _checksum(tensors):
                raise ValueError("its contents do not match its checksum")
            self._register(path, metadata)
        except FileNotFoundError:
            return  # another process has removed it
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            log.warning("the feature shard %s is damaged (%s): removed, its examples are run again", path, error)
            with writing(path):
                path.unlink(missing_ok=True)

    def _register(self, path: Path, metadata: dict[str, Any]) -> None:
        start = first = 0
        for key, length, count in zip(metadata["keys"], metadata["lengths"], metadata["tokens"]):
            self.places.setdefault(key, Place(len(self._paths), start, length, first, count))
            start, first = start + length, first + count
        self._paths.append(path)
        self._names.add(path.name)


def shard_path(directory: Path, name: str) -> Path:
    """The file of a shard."""
    return directory / f"{name}.safetensors"


def write_shard(
    directory: Path,
    name: str,
    keys: Sequence[str],
    lengths: Sequence[int],
    features: Tensor,
    targets: Tensor,
    states: Tensor | None = None,
    tokens: Sequence[int] = (),
) -> tuple[Path, dict[str, Any]]:
    """Write one shard: `features (N, d)`, `targets (N,)`, of examples `keys` with `lengths` rows each, N in all.

    `states (M, d)`, where there are any, are of the examples' `tokens`, M in all. Returns the file and what its header says.
    """
    tensors = {"features": features.contiguous(), "targets": targets.contiguous()}
    tensors |= {} if states is None else {"states": states.contiguous()}
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "keys": list(keys),
        "lengths": list(lengths),
        "tokens": list(tokens or [0] * len(keys)),
        "crc32": _checksum(tensors),
    }
    # one entry: safetensors writes several in an order that differs from process to process
    header = {"shard": json.dumps(metadata, sort_keys=True, separators=(",", ":"))}
    path = shard_path(directory, name)
    write_whole(path, lambda temporary: save_file(tensors, temporary, header))
    return path, metadata


def _read_metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return _metadata_of(file)


def _metadata_of(file: Any) -> dict[str, Any]:
    metadata = json.loads((file.metadata() or {}).get("shard", "{}"))
    if not isinstance(metadata, dict):
        raise ValueError("its header is not one of a feature shard")
    return metadata


def _read_shard(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        names = set(file.keys()) | {"features", "targets"}
        return _metadata_of(file), {name: file.get_tensor(name) for name in sorted(names)}


def _checksum(tensors: dict[str, Tensor]) -> str:
    checksum = 0
    for _, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
