"""`t3 unlearn`: from a removal request to an adapter."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, replace
from pathlib import Path

from tempertilt.cli.flags import add_config, add_config_file, add_model, build, read_config_file, require
from tempertilt.cli.records import FORMATS, add_selection, add_source, read_records
from tempertilt.cli.streams import print_json
from tempertilt.cli.text import changes, labelled
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.records import check_records
from tempertilt.errors import ConfigError
from tempertilt.fitting.background import BackgroundConfig
from tempertilt.fitting.before_after import ReportConfig
from tempertilt.fitting.calibrate import CalibrationConfig
from tempertilt.fitting.features import FeatureConfig
from tempertilt.fitting.fit_gate import GateConfig
from tempertilt.fitting.fit_head import FitConfig
from tempertilt.fitting.launch import WorkersConfig, open_workers
from tempertilt.fitting.pipeline import METHODS, UnlearnConfig, UnlearnResult, unlearn
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.base import load_base
from tempertilt.theory.diagnose import Diagnosis, Sides, diagnose_adapter

PLAIN = (
    "method", "model", "peft_adapter", "forget", "retain", "holdout", "columns", "limit", "drop_overlap", "output_dir",
    "overwrite",
)  # fmt: skip
CONFIGS = (
    TiltConfig, GateConfig, BackgroundConfig, CalibrationConfig, FitConfig, FeatureConfig, WorkersConfig, ExampleConfig,
    ReportConfig,
)  # fmt: skip
TITLES = ("tilt", "gate", "background text", "calibration", "fit", "features", "workers", "examples", "report")


COVERED, ALARMED = 0.98, 0.05
UNCOVERED = (
    "some forget prompts name nothing that is theirs alone, so the gate stays shut on them until the answer does: add records "
    "that do, or widen it with --gate-threshold"
)
ALARMING = (
    "the gate opens on kept text that it was not made of more often than one would wish: add retain records like it, or narrow "
    "the gate with --gate-threshold"
)
MEMORISES = (
    "the head only memorises: on documents that it has not seen it does no better than a coin, so it can't tell what "
    "else is to be forgotten or kept. "
)
GATED = "The gate keeps it from acting where the text is about nothing in the forget records."
UNGATED = "Without a gate it acts on unrelated text as well; see --gate."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    data = parser.add_argument_group(f"records ({FORMATS}); each flag takes several and may be repeated")
    add_source(data, "--forget", "what the model must no longer say")
    add_source(data, "--retain", "what must stay unchanged; without it, text that the model itself writes (method t3)")
    add_source(data, "--holdout", "optional: like the forget set, but never seen by the model; chooses the guidance scale")
    add_selection(data)
    data.add_argument(
        "--drop-overlap", action="store_true", help="drop duplicates and overlapping records instead of refusing them"
    )
    add_model(parser)
    parser.add_argument(
        "--method", default=None, help=f"{' or '.join(METHODS)} (default: t3); sets the defaults of the options below"
    )
    out = parser.add_argument_group("output")
    out.add_argument("--output-dir", help="directory for the adapter")
    out.add_argument("--overwrite", action="store_true", help="replace the adapter in it")
    out.add_argument("--theory", action="store_true", help="also print what the theory says of this adapter")
    out.add_argument("--json", action="store_true", help="print the report as JSON")
    add_config_file(out)  # type: ignore[arg-type]
    for title, config in zip(TITLES, CONFIGS):
        add_config(parser, title, config)


def run(args: argparse.Namespace) -> int:
    """Unlearn, and print what changed."""
    read_config_file(args, [*CONFIGS, *PLAIN])
    require(args, "model", "forget", "output_dir")
    config = _configuration(args)
    if not args.retain and not config.background.background:
        raise ConfigError("--retain is needed, or background text in its place (--background N); see t3 unlearn --help")
    workers, device = open_workers(build(WorkersConfig, args), args.device)
    try:
        forget, retain, holdout = (read_records(args, sources) for sources in (args.forget, args.retain, args.holdout))
        sets = check_records(forget, retain, holdout, drop_overlap=args.drop_overlap)
        options = {"device": device, "dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
        base = workers.load(lambda: load_base(args.model, peft_adapter=args.peft_adapter, **options))
        out, quiet = Path(args.output_dir), args.quiet or not workers.first
        result = unlearn(base, sets, out, config, workers=workers, overwrite=args.overwrite, progress=not quiet)
    finally:
        workers.close()
    if workers.first:
        diagnosis = _diagnosis(result, config) if args.theory else None
        report = result.report() | ({"diagnosis": diagnosis and diagnosis.report()} if args.theory else {})
        if args.json:
            print_json(report)
        else:
            print(_text(result, diagnosis))
    return 0


def _configuration(args: argparse.Namespace) -> UnlearnConfig:
    """The method's configuration with what was asked for otherwise."""
    method = args.method or "t3"
    if method not in METHODS:
        raise ConfigError(f"--method is {method!r}; must be one of {', '.join(METHODS)}")
    preset = METHODS[method]
    own_scale = "guidance_scale" in {**vars(args), **args.config_values}
    calibration = replace(preset.calibration, calibrate=False) if own_scale else preset.calibration
    return UnlearnConfig(
        examples=build(ExampleConfig, args, preset.examples),
        features=build(FeatureConfig, args, preset.features),
        fit=build(FitConfig, args, preset.fit),
        tilt=build(TiltConfig, args, preset.tilt),
        gate=build(GateConfig, args, preset.gate),
        background=build(BackgroundConfig, args, preset.background),
        calibration=build(CalibrationConfig, args, calibration),
        report=build(ReportConfig, args, preset.report),
    )


def _diagnosis(result: UnlearnResult, config: UnlearnConfig) -> Diagnosis | None:
    """What the theory says of the measured records and the held-out documents; None where there are none."""
    fit, found = result.fit, result.changes.likelihoods
    if fit is None or fit.held_out_log_odds is None or not {"retain", "forget"} <= set(found):
        return None
    totals = {name: [item.n_scored * item.base_log_prob for item in items] for name, items in found.items()}
    tilt = replace(config.tilt, guidance_scale=result.model.guidance_scale)
    return diagnose_adapter(Sides(totals["retain"], totals["forget"]), Sides(*fit.held_out_log_odds), **asdict(tilt))


def _text(result: UnlearnResult, diagnosis: Diagnosis | None = None) -> str:
    lines = changes(result.changes.summaries, result.changes.shown)
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
    if result.gate is not None:
        found = result.gate
        lines += [
            f"gate         {len(found.gate.margins)} exemplars after {found.gate.layer} layers; opens on {found.coverage:.1%} of "
            f"forget prompts; held out, on {found.recall:.1%} of forget prompts and {found.false_alarms:.1%} of kept records"
        ]
        if found.coverage < COVERED:
            lines += labelled("note", [UNCOVERED])
        if found.false_alarms > ALARMED:
            lines += labelled("note", [ALARMING])
    if result.calibration is not None:
        chosen = result.calibration
        lines += [
            f"scale        {chosen.guidance_scale:.3f}: forget answers at {chosen.reached:.2f} nats a token "
            f"({chosen.before:.2f} before), holdout answers at {chosen.target:.2f}"
        ]
    if fit is not None and fit.held_out is not None and fit.held_out.loss > math.log(2) > fit.train.loss:
        lines += labelled("note", [MEMORISES + (GATED if result.gate else UNGATED)])
    if diagnosis is not None:
        lines += labelled("theory", diagnosis.lines())
    if result.extraction is not None and result.extraction.workers > 1:
        lines += [f"features     by {result.extraction.workers} processes"]
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
