"""`t3 demo`: see a small model forget."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from tempertilt.cli.demonstration import DemoConfig, run_demo
from tempertilt.cli.flags import add_config, build
from tempertilt.cli.streams import print_json
from tempertilt.cli.text import changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config(parser, "size", DemoConfig)


def run(args: argparse.Namespace) -> int:
    """Run the demonstration and print what changed."""
    result = run_demo(build(DemoConfig, args), progress=not args.quiet, say=lambda text: print(text, file=sys.stderr, flush=True))
    if args.json:
        report = {
            "likelihood": {name: asdict(summary) for name, summary in result.summaries.items()},
            "facts_named": result.facts,
            "answers": [asdict(item) for item in result.shown],
            "seconds": result.seconds,
            "adapter": str(result.unlearning.directory),
        }
        print_json(report)
        return 0
    print()
    print("\n".join(changes(result.summaries, result.shown)))
    for name, (count, before, after) in result.facts.items():
        print(f"{name}: the fact asked for is named in {before} of {count} greedy answers before, in {after} after.")
    print("paraphrase: the forgotten facts asked for in other words; unrelated: general knowledge. Neither was trained on.")
    print("time       " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items()))
    print(f"ask it yourself:  t3 chat --adapter {result.unlearning.directory} --compare")
    print("\nThe base model's weights are unchanged and still hold the knowledge: T3 unlearns what a served model says.")
    return 0
