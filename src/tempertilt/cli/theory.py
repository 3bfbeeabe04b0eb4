"""`t3 theory`: experiments that show what the theory guarantees, and why tempering is needed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tempertilt.cli.streams import print_json
from tempertilt.errors import ConfigError
from tempertilt.theory.experiments import EXPERIMENTS, Result, run_experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--experiment", metavar="NAME", help=f"{', '.join(EXPERIMENTS)}, or all (default: list them)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is random (default: 0)")
    parser.add_argument("--output-dir", help="directory for figure (PNG), tables (Markdown, CSV) and JSON; default: none written")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run one experiment or all, print findings and tables, write files if asked to."""
    if args.experiment is None:
        if args.output_dir:
            raise ConfigError(f"--output-dir needs --experiment, one of {', '.join(EXPERIMENTS)}, all")
        return _list(as_json=args.json)
    names = list(EXPERIMENTS) if args.experiment == "all" else [args.experiment]
    reports = []
    for name in names:
        result = run_experiment(name, args.seed)
        paths = result.write(Path(args.output_dir)) if args.output_dir else []
        reports.append(result.report() | {"files": [str(path) for path in paths]})
        if not args.json:
            _print(result, paths)
    if args.json:
        print_json(reports if args.experiment == "all" else reports[0])
    return 0


def _list(*, as_json: bool) -> int:
    entries = [{"name": name, "description": experiment.description} for name, experiment in EXPERIMENTS.items()]
    if as_json:
        print_json(entries)
    for entry in [] if as_json else entries:
        print(f"{entry['name']:<22} {entry['description']}")
    return 0


def _print(result: Result, paths: list[Path]) -> None:
    print(result.markdown(), flush=True)
    for path in paths:
        print(path, file=sys.stderr)
