"""`t3 finetune`: make a model know a corpus."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from tempertilt.cli.flags import add_config, add_config_file, add_model, build, read_config_file, require
from tempertilt.cli.records import FORMATS, add_selection, add_source, read_records
from tempertilt.cli.streams import print_json
from tempertilt.data.examples import ExampleConfig, build_examples
from tempertilt.environment import environment
from tempertilt.errors import AdapterError
from tempertilt.models.base import load_base
from tempertilt.models.limits import check_examples
from tempertilt.storage import output_directory
from tempertilt.training.finetune import FinetuneConfig, finetune, finetune_key, is_finished, save_finetuned

CONFIGS = (FinetuneConfig, ExampleConfig)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    data = parser.add_argument_group(f"records ({FORMATS}); the flag takes several and may be repeated")
    add_source(data, "--data", "what the model shall know")
    add_selection(data)
    add_model(parser)
    out = parser.add_argument_group("output")
    out.add_argument("--output-dir", help="directory for the PEFT adapter; give it to --peft-adapter")
    out.add_argument("--overwrite", action="store_true", help="replace the adapter in it")
    out.add_argument("--json", action="store_true", help="print the report as JSON")
    add_config_file(out)  # type: ignore[arg-type]
    for title, config in zip(("training", "examples"), CONFIGS):
        add_config(parser, title, config)


def run(args: argparse.Namespace) -> int:
    """Train and save, or say that it has been done."""
    read_config_file(args, [*CONFIGS, "model", "peft_adapter", "data", "output_dir", "limit", "columns", "overwrite"])
    require(args, "model", "data", "output_dir")
    config, examples_config, directory = build(FinetuneConfig, args), build(ExampleConfig, args), Path(args.output_dir)
    records = read_records(args, args.data)
    base = load_base(
        args.model,
        peft_adapter=args.peft_adapter,
        device=args.device,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
    )
    examples = build_examples(records, base.tokenizer, examples_config)
    check_examples(base.model, base.tokenizer, records, examples)
    key = finetune_key(base.fingerprint, examples, config)
    with output_directory(directory):
        if is_finished(directory, key) and not args.overwrite:
            print(f"{directory} holds the adapter of this model, these records and options: nothing to do")
            return 0
        if any(path for path in directory.iterdir() if not path.name.startswith(".unfinished-")) and not args.overwrite:
            raise AdapterError(
                f"{str(directory)!r} is not empty; name another directory, or replace the adapter in it with --overwrite"
            )
        result = finetune(base.model, examples, config, progress=not args.quiet)
        report = {
            "key": key,
            "model": args.model,
            "records": len(records),
            "config": asdict(config) | asdict(examples_config),
            **{name: value for name, value in result.__dict__.items() if name != "model"},
            "environment": environment(),
        }
        save_finetuned(result, directory, report, base)
    if args.json:
        print_json(report)
    else:
        use = f"use it with  --model {args.model} --peft-adapter {directory}"
        if args.peft_adapter:
            use = f"its README.md says how to use it on {args.model} with {args.peft_adapter}"
        print(
            f"{len(records)} records, {config.epochs} epochs in {result.seconds:.0f} s "
            f"({result.tokens_per_second:.0f} tokens/s), "
            f"loss {result.losses[0]:.3f} -> {result.losses[-1]:.3f}\n"
            f"adapter  {directory}: {use}"
        )
    return 0
