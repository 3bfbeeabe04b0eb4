"""`t3 bench`: unlearning methods side by side."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tempertilt.bench import tables
from tempertilt.bench.config import BenchConfig, as_dict, read_config
from tempertilt.bench.jobs import JOBS
from tempertilt.bench.page import to_html
from tempertilt.bench.run import Bench, RunOptions
from tempertilt.bench.scores import Row
from tempertilt.cli.flags import require
from tempertilt.errors import ConfigError
from tempertilt.storage import write_text
from tempertilt.training.config import TRACKERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--config", metavar="FILE", help="YAML file: model, data, methods, grids, seeds, budget, evaluation")
    parser.add_argument("--output-dir", help="folder for trials and tables; an interrupted benchmark resumes there")
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="only this row of methods; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="list the trials and whether they are finished; run nothing")
    parser.add_argument("--report-only", action="store_true", help="write the tables of the finished trials; run nothing")
    parser.add_argument("--retry-failed", action="store_true", help="run failed trials again")
    run = parser.add_argument_group("running")
    run.add_argument("--jobs", choices=JOBS, default="local", help="where trials run (default: local)")
    run.add_argument("--workers", type=int, default=1, help="trials at a time (default: 1)")
    run.add_argument("--launcher", default="", help='command that starts a trial, e.g. "accelerate launch --num_processes 2"')
    run.add_argument("--report-to", choices=TRACKERS, default="none", help="where training is tracked (default: none)")


def run(args: argparse.Namespace) -> int:
    """Run what has not finished, write the tables, and print one."""
    require(args, "config", "output_dir")
    if args.workers < 1:
        raise ConfigError(f"--workers is {args.workers}; must be a whole number >= 1")
    config, output = read_config(args.config, args.only), Path(args.output_dir)
    launcher = tuple(shlex.split(args.launcher))
    options = RunOptions(args.jobs, args.workers, launcher, args.report_to, args.retry_failed, args.report_only)
    say = (lambda _: None) if args.quiet else (lambda line: print(line, file=sys.stderr, flush=True))
    bench = Bench(config, Path(args.config), output, options, say)
    if args.dry_run:
        for trial in bench.plan():
            state = "finished" if trial.result() else "failed" if trial.failure() else "to do"
            print(f"{state:<9} {trial.name} {bench.labels[trial.key]}")
        return 0
    rows = bench.run()
    _write(output, rows, config, args.config)
    print(tables.to_markdown(rows), end="")
    print(f"\n{output / 'leaderboard.html'}")
    return 0


def _write(output: Path, rows: Sequence[Row], config: BenchConfig, path: str) -> None:
    dtype = "" if config.dtype == "auto" else f", {config.dtype}"
    title = f"Unlearning benchmark: {config.model}, {Path(config.data_dir).name}{dtype}"
    write_text(output / "results.json", tables.to_json(rows, as_dict(config, path)))
    write_text(output / "table.csv", tables.to_csv(rows))
    write_text(output / "table.md", tables.to_markdown(rows))
    write_text(output / "table.tex", tables.to_latex(rows))
    write_text(output / "leaderboard.html", to_html(rows, title))
