"""Ray: a cluster for work that is spread, and feature extraction by model actors of Ray Data.

Ray's usage statistics are switched off. A cluster that was started by hand has its own setting: `ray disable-usage-stats`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from tempertilt.data.examples import Example
from tempertilt.errors import ConfigError, MissingExtraError, TemperTiltError
from tempertilt.fitting.features import store_name
from tempertilt.fitting.store import shard_path
from tempertilt.fitting.workers import Local, Shard, Work, run_shard
from tempertilt.models.base import BaseModel, load_base

KEPT = ("OMP_", "MKL_", "OPENBLAS_", "TEMPERTILT_", "XDG_CACHE_HOME", "HF_")
"""Beginnings of the names of environment variables that Ray's processes are given."""

RETRIES = 10
"""How often a shard is tried again after its actor was lost: often, for machines that may be taken away, but not for ever."""


@contextmanager
def session(workers: int) -> Iterator[None]:
    """Inside, Ray runs: the cluster that `RAY_ADDRESS` names, or one of this machine's own that ends with the block.

    What Ray prints, where a worker is lost for example, goes to stderr.

    Args:
        workers: processors of a Ray of our own; 0 is all.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("ray[data]", "ray", "--workers ray") from error
    begun = not ray.is_initialized()
    with redirect_stdout(sys.stderr):
        if begun:
            keep = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
            keep |= {"PYTHONPATH": os.pathsep.join([path for path in sys.path if path])}
            own = None if os.environ.get("RAY_ADDRESS") else workers or None
            ray.init(log_to_driver=False, include_dashboard=False, runtime_env={"env_vars": keep}, num_cpus=own)
        try:
            yield
        finally:
            if begun:
                ray.shutdown()


class Ray(Local):
    """Extraction by actors, each of which has loaded the base model; Ray deals out shards, and again those of a lost actor.

    The cache directory must be on a disk that all machines share. Every other step is done by this process.

    Args:
        actors: how many; 0 lets Ray start as many as it finds work and room for.
        gpus: of each actor, where the model runs on GPUs.
    """

    def __init__(self, actors: int, gpus: int) -> None:
        self.actors, self.gpus, self.count = actors, gpus, 1
        self._base: BaseModel | None = None

    def load(self, make: Callable[[], BaseModel]) -> BaseModel:
        """What `make` returns, which the actors will load as well."""
        self._base = make()
        if self._base.source is None:
            raise ConfigError("--workers ray needs a base model of load_base: the actors load it again")
        return self._base

    def extract(self, model: Any, work: Work, done: Callable[[int], object]) -> None:
        """Write every shard, in no order."""
        if not work.shards:
            return
        if self._base is None:
            raise ConfigError("no base model was given: call load first")
        with session(self.actors):
            self.count = self._extract(self._base, work, done)

    def _extract(self, base: BaseModel, work: Work, done: Callable[[int], object]) -> int:
        """As `extract`, inside a session; return how many processes took part."""
        import ray.data
        from ray.exceptions import RayError

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        rows = [{"shard": pack(shard)} for shard in work.shards]
        on_gpu = base.model.device.type == "cuda"
        name = store_name(base.fingerprint, base.model, work.config, work.state_layer)
        written = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            ShardWorker,
            batch_size=1,
            fn_constructor_args=(
                base._replace(model=None, tokenizer=None),
                work._replace(shards=[]),
                name,
            ),
            compute=ray.data.ActorPoolStrategy(size=self.actors) if self.actors else ray.data.ActorPoolStrategy(min_size=1),
            num_cpus=1,
            num_gpus=self.gpus if on_gpu else 0,
            max_task_retries=RETRIES,
        )
        seen: set[str] = set()
        try:
            for row in written.iter_rows():
                if row["error"]:
                    raise TemperTiltError(str(row["error"]))
                done(int(row["tokens"]))
                seen.add(str(row["process"]))
        except RayError as error:
            raise TemperTiltError(f"Ray could not run a shard (lost actors are replaced {RETRIES} times): {error}") from error
        return len(seen)


class ShardWorker:
    """An actor: the base model, and one shard of features at a time.

    Args:
        base: what to load and its fingerprint.
        work: everything but the shards.
        name: of the store, which says what decides a feature's value.

    What is wrong, such as a model that is another on this machine, is in the rows that it returns: Ray wraps what is raised.
    """

    def __init__(self, base: BaseModel, work: Work, name: str) -> None:
        assert base.source is not None
        self.work, self.error = work, ""
        try:
            loaded = load_base(base.name, peft_adapter=base.peft_adapter, **base.source._asdict())
            self.model = loaded.model
            if (here := store_name(loaded.fingerprint, loaded.model, work.config, work.state_layer)) != name:
                self.error = f"on {socket.gethostname()} the base model {base.name!r} gives features {here}, not {name}"
        except TemperTiltError as error:
            self.error = f"on {socket.gethostname()}: {error}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write the shards of a batch; return the tokens of each, who has run them, and what was wrong."""
        tokens = []
        for content in batch["shard"]:
            shard = unpack(bytes(content))
            try:
                if not self.error:
                    self.write(shard)
            except TemperTiltError as error:
                self.error = str(error)
            tokens.append(shard.tokens)
        process = f"{socket.gethostname()}:{os.getpid()}"
        return {"tokens": tokens, "process": [process] * len(tokens), "error": [self.error] * len(tokens)}

    def write(self, shard: Shard) -> None:
        """Write a shard, unless an attempt before this one has."""
        if not shard_path(self.work.directory, shard.name).exists():
            run_shard(self.model, shard, self.work)


def pack(shard: Shard) -> bytes:
    """A shard's examples as bytes, in the safetensors format."""
    examples = shard.examples
    arrays = {
        "input_ids": np.concatenate([example.input_ids for example in examples]).astype(np.int32),
        "scored": np.concatenate([example.scored for example in examples]),
        "lengths": np.array([len(example) for example in examples], np.int32),
        "batches": np.array([len(batch) for batch in shard.batches], np.int32),
        "sources": np.frombuffer(json.dumps([example.source for example in examples]).encode(), np.uint8),
    }
    return bytes(save(arrays))


def unpack(content: bytes) -> Shard:
    """The shard that `pack` was given; of its examples' origin only `source` is left."""
    arrays = load(content)
    cuts = arrays["lengths"].cumsum()[:-1]
    parts = zip(np.split(arrays["input_ids"], cuts), np.split(arrays["scored"], cuts), json.loads(arrays["sources"].tobytes()))
    examples = iter([Example(ids, scored, "", source, 0) for ids, scored, source in parts])
    return Shard([[next(examples) for _ in range(size)] for size in arrays["batches"]])
