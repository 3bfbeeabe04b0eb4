"""`t3 list`: what there is to choose from."""

from __future__ import annotations

import argparse
import json

from tempertilt.cli.catalogue import CATALOGUE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("kind", choices=sorted(CATALOGUE), help="what to list")
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def run(args: argparse.Namespace) -> int:
    """Print one kind of thing."""
    entries = CATALOGUE[args.kind]()
    if args.json:
        print(json.dumps(entries, indent=2))
    elif not entries:
        print(f"no {args.kind} in this version")
    for entry in [] if args.json else entries:
        print(f"{entry['name']:<22} {entry['description']}")
    return 0
