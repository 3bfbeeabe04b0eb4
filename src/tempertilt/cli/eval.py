"""`t3 eval`: measure a model on a benchmark."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tempertilt.cli.flags import add_adapter, add_config, add_config_file, build, read_config_file, require
from tempertilt.cli.session import open_model
from tempertilt.cli.streams import print_json
from tempertilt.cli.text import metric_table
from tempertilt.data.examples import ExampleConfig
from tempertilt.errors import ConfigError
from tempertilt.metrics.truth_ratio import MAKE_A_REFERENCE
from tempertilt.models.base import BaseModel, load_base
from tempertilt.report.verdict import verdict
from tempertilt.suites.items import MeasureConfig
from tempertilt.suites.run import SuiteRun, run_suite
from tempertilt.suites.suite import NAMES, Suite, find_suite, suites

NAMED = ("model", "peft_adapter", "adapter", "data_dir", "reference_model", "reference_peft_adapter")
PLAIN = ("suite", *NAMED, "reference", "target", "output_dir", "overwrite")
CONFIGS = (MeasureConfig, ExampleConfig)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--suite", choices=NAMES, help="benchmark (default: tofu)")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-dir", help="directory of the suite's files, or a dataset on the hub (default: the suite's own, if it has one)"
    )
    data.add_argument(
        "--reference", metavar="RUN", help="results of a model that never saw the forget set: a run folder or a log"
    )
    data.add_argument(
        "--target",
        metavar="RUN",
        help="results of the model before unlearning: for unchanged answers, facts still known, utility and aggregate score",
    )
    add_adapter(parser)
    beside = parser.add_argument_group("reference model, run beside the model at forget answers (distances, perplexity)")
    beside.add_argument("--reference-model", metavar="MODEL", help="a model that never saw the forget set (default: --model)")
    beside.add_argument("--reference-peft-adapter", metavar="DIR", help="PEFT adapter that makes it one")
    out = parser.add_argument_group("output")
    out.add_argument("--output-dir", help="run folder")
    out.add_argument("--overwrite", action="store_true", help="measure again even if the run folder holds this very run")
    out.add_argument("--json", action="store_true", help="print the metrics as JSON")
    add_config_file(out)  # type: ignore[arg-type]
    add_config(parser, "suite", *(suite.config for suite in suites()))
    for title, config in zip(("measuring", "examples"), CONFIGS):
        add_config(parser, title, config)


def run(args: argparse.Namespace) -> int:
    """Measure, and print the metrics."""
    read_config_file(args, [*(suite.config for suite in suites()), *CONFIGS, *PLAIN])
    require(args, "output_dir")
    suite = find_suite(args.suite or NAMES[0])
    _check_options(suite, args)
    config = build(suite.config, args)
    measuring = build(MeasureConfig, args, MeasureConfig(**suite.measuring))
    data = suite.load(args.data_dir, config)
    reference_model = _reference_model(args)
    model, tokenizer, system_prompt = open_model(args)
    examples = build(ExampleConfig, args, ExampleConfig(**suite.examples))
    if system_prompt is not None and "system_prompt" not in {**vars(args), **args.config_values}:
        examples = replace(examples, system_prompt=system_prompt)
    result = run_suite(
        suite,
        model,
        tokenizer,
        data,
        Path(args.output_dir),
        config=config,
        measuring=measuring,
        examples=examples,
        reference=args.reference,
        reference_model=reference_model,
        target=args.target,
        describe={name: getattr(args, name) for name in NAMED},
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    if args.json:
        print_json(_json(result))
    else:
        print(_text(result))
    return 0


def _check_options(suite: Suite, args: argparse.Namespace) -> None:
    """`ConfigError` for an option that another suite has and this one has not."""
    own = {field.name for field in fields(suite.config)}
    for other in suites():
        for field in fields(other.config):
            if field.name not in own and field.name in {**vars(args), **args.config_values}:
                raise ConfigError(f"--{field.name.replace('_', '-')} is an option of --suite {other.name}, not of {suite.name}")


def _reference_model(args: argparse.Namespace) -> BaseModel | None:
    """The model that `--reference-model` and `--reference-peft-adapter` name, None without them."""
    if args.reference_model is None and args.reference_peft_adapter is None:
        return None
    name = args.reference_model or args.model
    if name is None:
        raise ConfigError("--reference-peft-adapter needs the model that it is for: name it with --reference-model")
    options = {"device": args.device, "dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    return load_base(name, peft_adapter=args.reference_peft_adapter, **options)


def _json(run: SuiteRun) -> dict[str, Any]:
    return {
        "run": str(run.directory),
        "reused": run.reused,
        "metrics": {name: result.summary() for name, result in run.metrics.items()},
        "not_computed": run.not_computed,
        "seconds": run.seconds,
    }


def _text(run: SuiteRun) -> str:
    words = [textwrap.fill(line, 130) for line in verdict(run.metrics)]
    lines = [*words, *([""] if words else []), *metric_table(run.metrics)]
    if run.not_computed:
        reasons: dict[str, list[str]] = {}
        for name, reason in run.not_computed.items():
            reasons.setdefault(reason.splitlines()[0], []).append(name)
        lines += ["", "not computed:"]
        lines += [f"  {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    if "forget_quality" in run.not_computed:
        lines += ["", MAKE_A_REFERENCE]
    seconds = sum(run.seconds.values())
    lines += ["", f"run folder   {run.directory}{' (samples reused)' if run.reused else ''}, measured in {seconds:.0f} s"]
    return "\n".join(lines)
