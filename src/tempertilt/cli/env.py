"""`t3 env`: versions and machine."""

from __future__ import annotations

import argparse

from tempertilt.cli.streams import print_json
from tempertilt.environment import environment
from tempertilt.storage import cache_dir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the environment."""
    info = environment()
    packages = info.pop("packages")
    info["cache"] = str(cache_dir())
    if args.json:
        print_json(info | {"packages": packages})
        return 0
    info["gpus"] = ", ".join(info["gpus"]) or "none"
    for name, value in (info | packages).items():
        print(f"{name:<14} {value if value is not None else 'not installed'}")
    return 0
