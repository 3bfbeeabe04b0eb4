"""Where features are extracted: in this process, in those that torchrun or accelerate started, or by model actors of Ray.

Who runs which step of `t3 unlearn`:

                                    local    accelerate                  ray
    tokens of records               it       every process               driver
    background text                 it       first process, then sent    driver
    features and lower states       it       shards dealt out            shards dealt out to actors
    gate, fit                       it       first process, then sent    driver
    scale, evidence                 it       first process, then sent    driver
    adapter                         it       first process               driver

Where the model itself is split over the processes (FSDP), every one of them takes part in each pass.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from tempertilt.config.options import Options, option
from tempertilt.errors import ConfigError, TemperTiltError
from tempertilt.fitting.workers import Local, Work, Workers, batch_features, run_shard
from tempertilt.models.base import BaseModel, decoder_layers

log = logging.getLogger("tempertilt")

KINDS = ("local", "accelerate", "ray")
PATIENCE = timedelta(days=30)
"""How long processes wait for each other: the launcher ends them all when one is lost."""


@dataclass(frozen=True)
class WorkersConfig(Options):
    """Where features are extracted; it changes nothing about them."""

    workers: str = option(
        "local",
        "local (one process), accelerate (those that torchrun or accelerate launch starts) or ray (a cluster)",
        choices=KINDS,
        advanced=True,
    )
    num_workers: int = option(0, "ray: model actors; 0 = as many as Ray finds work and room for", ge=0, advanced=True)
    gpus_per_worker: int = option(1, "ray: GPUs of a model actor, where the model runs on GPUs", ge=1, advanced=True)


def open_workers(config: WorkersConfig, device: str) -> tuple[Workers, str]:
    """The workers, and the device on which this process loads its model.

    Raises:
        ConfigError: several processes were started for workers that are one process, or DeepSpeed was asked for.
    """
    if config.workers == "accelerate":
        processes = Processes(device)
        return processes, processes.device
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ConfigError(
            f"{started} processes were started, and with --workers {config.workers} each would do all of the work; "
            "valid under torchrun and accelerate launch is --workers accelerate"
        )
    if config.workers == "ray":
        from tempertilt.fitting.ray import Ray

        return Ray(config.num_workers, config.gpus_per_worker), device
    return Local(), device


# --- the processes of torchrun and accelerate launch -----------------------------------------------------------------


class Processes:
    """The processes that a launcher has started; each of them has called the same command.

    Args:
        device: as in `load_base`; "auto" is one GPU for each process where there are any.
    """

    def __init__(self, device: str) -> None:
        from accelerate import PartialState

        if _flag("ACCELERATE_USE_DEEPSPEED"):
            raise ConfigError("DeepSpeed is not supported; FSDP splits a model in the same way: accelerate launch --use_fsdp")
        on_cpu = device == "cpu" or _flag("ACCELERATE_USE_CPU") or (device == "auto" and not torch.cuda.is_available())
        # NCCL for what GPUs exchange, gloo for what else is sent
        backend = {} if on_cpu or not torch.cuda.is_available() else {"backend": "cuda:nccl,cpu:gloo"}
        state = PartialState(cpu=on_cpu, timeout=PATIENCE, **backend)
        self._state = state
        self.rank, self.count = int(state.process_index), int(state.num_processes)
        self.first = self.rank == 0
        self.split = _flag("ACCELERATE_USE_FSDP") and self.count > 1
        own = str(state.device) if device == "auto" else device
        self.device = "cpu" if self.split else own  # a model that is to be split is loaded into main memory
        self._own = own
        if self.count == 1:
            log.warning(
                "--workers accelerate has found one process, so nothing is spread: start it with torchrun or accelerate launch "
                "(on CPUs: accelerate launch --multi_gpu --num_processes N --no-python t3 ...)"
            )

    def load(self, make: Callable[[], BaseModel]) -> BaseModel:
        """Load the base model, first in one process of each machine: what is downloaded or converted then is so once.

        The model is split over the processes of each machine where the launcher was told to (FSDP). Every decoder layer is split
        by itself; embeddings, the last norm and the output layer are whole in every process. So each of these can be called on
        its own, and what runs is the same arithmetic on the same numbers as in one process.
        """
        with self._state.local_main_process_first():
            base = make()
        if self.split:
            self._split(base)
        return base

    def _split(self, base: BaseModel) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        group = here if self.count % here == 0 else self.count  # the processes of one machine, if all have as many
        shape, names = (self.count // group, group), ("machines", "processes")
        mesh = init_device_mesh(torch.device(self._own).type, shape, mesh_dim_names=names)["processes"]
        for layer in decoder_layers(base.model):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        log.info("each layer of the base model is split over %d processes", group)
        if self._own != "cpu":
            base.model.to(self._own)

    def share(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in the first process, in all of them.

        Raises:
            TemperTiltError: in the others, if it fails in the first, where the failure itself is raised.
        """
        sent: list[Any] = [None, True]
        failure = None
        if self.rank == 0:
            try:
                sent = [make(), False]
            except BaseException as error:
                failure = error
        if self.count > 1:
            torch.distributed.broadcast_object_list(sent, src=0, device=torch.device("cpu"))
        if failure is not None:
            raise failure
        if sent[1]:
            raise TemperTiltError("the first process has failed; it says why")
        return sent[0]

    def together(self, make: Callable[[], Any]) -> Any:
        """As `share`; where the model is split all processes call `make`, since all of them must run the passes."""
        return make() if self.split else self.share(make)

    def extract(self, model: Any, work: Work, done: Callable[[int], object]) -> None:
        """Run every so-manieth shard in this process; wait for the others.

        With a split model all processes make the same number of passes, the last ones for nothing where one has fewer batches.
        """
        if not work.shards:
            return
        shares = [work.shards[rank :: self.count] for rank in range(self.count)]
        for shard in shares[self.rank]:
            run_shard(model, shard, work, done)
        if self.split:
            passes = [sum(len(shard.batches) for shard in share) for share in shares]
            for _ in range(max(passes) - passes[self.rank]):
                batch_features(model, work.shards[-1].batches[-1][:1], work.config, work.state_layer)
        if self.count > 1:
            torch.distributed.barrier()

    def close(self) -> None:
        """Leave the group of processes."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
