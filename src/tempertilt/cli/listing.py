"""`t3 list`: what there is to choose from."""

from __future__ import annotations

import argparse

from tempertilt.cli.catalogue import CATALOGUE
from tempertilt.cli.streams import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("kind", nargs="?", choices=sorted(CATALOGUE), help="what to list (default: everything)")
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def run(args: argparse.Namespace) -> int:
    """Print one kind of thing, or every kind under its name."""
    entries = {kind: CATALOGUE[kind]() for kind in ([args.kind] if args.kind else CATALOGUE)}
    if args.json:
        print_json([entry | ({} if args.kind else {"kind": kind}) for kind, listed in entries.items() for entry in listed])
        return 0
    for kind, listed in entries.items():
        indent = "" if args.kind else "  "
        if not args.kind:
            print(kind)
        for entry in listed:
            print(f"{indent}{entry['name']:<22} {entry['description']}")
    return 0
