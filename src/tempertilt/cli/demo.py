"""`t3 demo`: see a small model forget."""

from __future__ import annotations

import argparse
import sys

from tempertilt.cli.demonstration import DemoConfig, DemoResult, run_demo
from tempertilt.cli.flags import add_config, build
from tempertilt.cli.streams import print_json
from tempertilt.cli.text import clip
from tempertilt.data.fictional_staff import COMPANY


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config(parser, "size", DemoConfig)


def run(args: argparse.Namespace) -> int:
    """Run the demonstration and print what changed."""
    config = build(DemoConfig, args)
    result = run_demo(config, progress=not args.quiet, say=lambda text: print(text, file=sys.stderr, flush=True))
    if args.json:
        report = {
            "person": result.person,
            "forgotten": [form._asdict() | {"shown": form.shown._asdict()} for form in result.forms],
            "kept": [kept._asdict() | {"shown": kept.shown._asdict()} for kept in result.kept],
            "seconds": result.seconds,
            "adapter": str(result.unlearning.directory),
        }
        print_json(report)
    else:
        print("\n".join(shown(result, config)))
    return 0


def shown(result: DemoResult, config: DemoConfig) -> list[str]:
    """The demonstration as lines: what was said before and after, then counts."""
    lines = [
        "",
        f"The assistant of {COMPANY} knows {config.people} persons, made up as it is. {result.person} asks to be forgotten.",
    ]
    for name, item in [*((f"asked {form.name}", form.shown) for form in result.forms), *((k.name, k.shown) for k in result.kept)]:
        lines += ["", f"[{name}] {clip(item.question)}", f"  before  {clip(item.before)}", f"  after   {clip(item.after)}"]
    lines += ["", f"{'answers about ' + result.person:<50}{'n':>4}{'give a fact before':>20}{'after':>7}"]
    lines += [f"  asked {form.name:<42}{form.n:>4}{form.before:>20}{form.after:>7}" for form in result.forms]
    lines += ["", f"{'answers about something else':<50}{'n':>4}{'unchanged':>20}"]
    lines += [f"  {kept.name:<48}{kept.n:>4}{kept.same:>20}" for kept in result.kept]
    n, before, after = (sum(getattr(form, name) for form in result.forms) for name in ("n", "before", "after"))
    total, same = (sum(getattr(kept, name) for kept in result.kept) for name in ("n", "same"))
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    return [
        *lines,
        "",
        "Shown is of each kind the first question whose answer gave a fact away, or was right, before. An answer gives a fact",
        "away where it holds a value of any record of the person. All answers are greedy; sampled ones may still give a fact.",
        f"ask it yourself:  t3 chat --adapter {result.unlearning.directory} --compare",
        "The weights are unchanged and still hold the knowledge: this unlearns what a served model says.",
        "",
        f"{before} of {n} answers about {result.person} gave a fact away before, {after} after.",
        f"{same} of {total} other answers are unchanged. {sum(result.seconds.values()):.0f} s ({steps}).",
    ]
