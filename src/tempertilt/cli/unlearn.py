"""`t3 unlearn`: from a removal request to an adapter."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tempertilt.base import load_base
from tempertilt.cli.flags import add_config, add_config_file, add_model, build, read_config_file, require
from tempertilt.cli.text import changes, labelled
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.records import check_records, load_records
from tempertilt.errors import ConfigError
from tempertilt.features import FeatureConfig
from tempertilt.fit import FitConfig
from tempertilt.pipeline import EvidenceConfig, TiltConfig, UnlearnConfig, UnlearnResult, unlearn

PLAIN = ("model", "peft_adapter", "forget", "retain", "holdout", "output_dir", "limit", "drop_overlap", "overwrite")
CONFIGS = (TiltConfig, FitConfig, FeatureConfig, ExampleConfig, EvidenceConfig)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    data = parser.add_argument_group("records (JSONL, JSON, CSV, Parquet, a directory of text files, or a dataset on the hub)")
    data.add_argument("--forget", help="what the model must no longer say")
    data.add_argument("--retain", help="what it must keep")
    data.add_argument("--holdout", help="optional: like the forget set, but never seen by the model; measured only")
    data.add_argument("--limit", type=int, help="only the first N records of each")
    data.add_argument(
        "--drop-overlap", action="store_true", help="drop duplicates and overlapping records instead of refusing them"
    )
    add_model(parser)
    out = parser.add_argument_group("output")
    out.add_argument("--output-dir", help="directory for the adapter")
    out.add_argument("--overwrite", action="store_true", help="replace the adapter in it")
    out.add_argument("--json", action="store_true", help="print the report as JSON")
    add_config_file(out)  # type: ignore[arg-type]
    for title, config in zip(("tilt", "fit", "features", "examples", "evidence"), CONFIGS):
        add_config(parser, title, config)


def run(args: argparse.Namespace) -> int:
    """Unlearn, and print what changed."""
    read_config_file(args, [*CONFIGS, *PLAIN])
    require(args, "model", "forget", "retain", "output_dir")
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit is {args.limit}; valid is a whole number >= 1")
    config = UnlearnConfig(
        examples=build(ExampleConfig, args),
        features=build(FeatureConfig, args),
        fit=build(FitConfig, args),
        tilt=build(TiltConfig, args),
        evidence=build(EvidenceConfig, args),
    )
    forget, retain, holdout = (
        load_records(source, limit=args.limit) if source else None for source in (args.forget, args.retain, args.holdout)
    )
    assert forget is not None and retain is not None
    sets = check_records(forget, retain, holdout, drop_overlap=args.drop_overlap)
    base = load_base(
        args.model,
        peft_adapter=args.peft_adapter,
        device=args.device,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
    )
    result = unlearn(base, sets, Path(args.output_dir), config, overwrite=args.overwrite, progress=not args.quiet)
    print(json.dumps(result.report(), indent=2, default=str) if args.json else _text(result))
    return 0


def _text(result: UnlearnResult) -> str:
    lines = changes(result.summaries, result.shown)
    fit = result.fit
    if fit is not None:
        lines += [
            f"fit          {fit.epochs} epochs in {fit.seconds:.1f} s, loss {fit.train.loss:.4f}, token accuracy "
            f"forget {fit.train.forget_accuracy:.2%}, retain {fit.train.retain_accuracy:.2%}"
        ]
        if fit.held_out is not None:
            lines += [
                f"held out     {fit.held_out_documents} documents: loss {fit.held_out.loss:.4f}, token accuracy "
                f"forget {fit.held_out.forget_accuracy:.2%}, retain {fit.held_out.retain_accuracy:.2%}"
            ]
        lines += [f"trained      {fit.num_parameters:,} numbers, {fit.parameter_share:.3%} of the base model"]
    if result.diagnosis is not None:
        lines += labelled("theory", result.diagnosis.lines())
    size = sum(path.stat().st_size for path in result.directory.glob("adapter_*"))
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    lines += [
        f"adapter      {result.directory} ({size / 1024:.0f} KiB{', reused' if result.reused else ''})",
        f"time         {times}",
    ]
    lines += [
        "",
        "The base model's weights are unchanged and still hold the knowledge; serve the model with this adapter on.",
    ]
    return "\n".join(lines)
