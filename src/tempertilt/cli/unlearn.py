"""`t3 unlearn`: from a removal request to an adapter."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tempertilt.cli.flags import add_config, add_config_file, add_model, build, read_config_file, require, show_only
from tempertilt.cli.records import FORMATS, add_selection, add_source, read_records
from tempertilt.cli.rehearsal import add_rehearsal, check_rehearsal, rehearsal_lines, run_rehearsal
from tempertilt.cli.streams import print_json
from tempertilt.cli.text import changes, clip, labelled
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.records import check_records
from tempertilt.errors import ConfigError
from tempertilt.fitting.background import BackgroundConfig
from tempertilt.fitting.before_after import ReportConfig
from tempertilt.fitting.calibrate import CalibrationConfig
from tempertilt.fitting.estimate import EstimateConfig
from tempertilt.fitting.features import FeatureConfig
from tempertilt.fitting.fit_gate import GateConfig
from tempertilt.fitting.fit_head import FitConfig, FitResult, MatchResult
from tempertilt.fitting.launch import WorkersConfig, open_workers
from tempertilt.fitting.pipeline import METHODS, UnlearnConfig, UnlearnResult, unlearn
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.base import load_base
from tempertilt.models.replies import ReplyConfig
from tempertilt.suites.rehearsal import Rehearsal, RehearsalConfig
from tempertilt.theory.diagnose import Diagnosis, Sides, diagnose_adapter

PLAIN = (
    "method", "model", "peft_adapter", "forget", "retain", "holdout", "columns", "limit", "drop_overlap", "output_dir",
    "overwrite", "rehearse",
)  # fmt: skip
OPTIONS: dict[str, type] = {
    "tilt": TiltConfig,
    "gate": GateConfig,
    "reply": ReplyConfig,
    "estimate": EstimateConfig,
    "background text": BackgroundConfig,
    "calibration": CalibrationConfig,
    "fit": FitConfig,
    "features": FeatureConfig,
    "examples": ExampleConfig,
    "report": ReportConfig,
}
"""What decides an adapter and its report, by the title of the flags' group."""

RECIPES = {name: preset.recipe() for name, preset in METHODS.items()}
CONFIGS = (*OPTIONS.values(), WorkersConfig, RehearsalConfig)


FALSE_OPEN = 0.05
ALARMING = (
    "the input gate opens on retain text that it was not made of more often than one would wish: add retain records like it, or "
    "raise --asked-threshold"
)
DEAF = (
    "fewer than nine in ten are heard of: {kinds}. That is no leak by itself: t3 audit says whether a fact comes out so. To have "
    "more heard, raise --variants, or lower --asked-threshold, or raise --false-open (see --help-all)"
)
NO_THEORY = (
    "its bounds are about a classifier that was fitted in this run, with documents held out: use --method t3-paper and a "
    "directory without a finished adapter"
)
UNLIKE = (
    "the records that it never saw are of another kind than these: the contrast model, which never saw these either, gives them "
    "{contrast:.2f} nats a token. Guesses will be unlike such answers: let a text be said with --reply. "
    "With --holdout records of the same form guesses are like such answers, and nearer to the truth, too"
)
NEVER_SEEN = {
    "holdout": "holdout records",
    "made up": "made-up records about authors",
    "stand-ins": "retain records under other names and with other values",
}
HEARD = 0.9  # share of the variants of a kind


SHORT = (
    "--forget", "--retain", "--holdout", "--rehearse", "--columns", "--model", "--peft-adapter", "--contrast", "--method",
    "--output-dir", "--overwrite", "--reply", "--config",
)  # fmt: skip
"""Flags that a first request may need; `--help-all` has the others."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    data = parser.add_argument_group(f"records ({FORMATS}); each flag takes several and may be repeated")
    add_source(data, "--forget", "what the model must no longer say")
    add_source(data, "--retain", "what must stay unchanged; without it, text that the model itself writes (method t3)")
    add_source(data, "--holdout", "optional: like the forget set, but never seen by the model; calibrates the estimate")
    add_rehearsal(data)
    add_selection(data)
    data.add_argument(
        "--drop-overlap", action="store_true", help="drop duplicates and overlapping records instead of refusing them"
    )
    add_model(parser)
    parser.add_argument(
        "--method", default=None, help=f"{' or '.join(METHODS)} (default: t3); sets the defaults of the other options"
    )
    out = parser.add_argument_group("output")
    out.add_argument("--output-dir", help="directory for the adapter")
    out.add_argument("--overwrite", action="store_true", help="replace the adapter in it")
    out.add_argument("--theory", action="store_true", help="also print what the theory says of this adapter")
    out.add_argument("--json", action="store_true", help="print the report as JSON")
    add_config_file(out)  # type: ignore[arg-type]
    for title, config in {**OPTIONS, "workers": WorkersConfig, "rehearsal": RehearsalConfig}.items():
        add_config(parser, title, config, presets=RECIPES)
    show_only(parser, SHORT)


def run(args: argparse.Namespace) -> int:
    """Unlearn, and print what changed."""
    read_config_file(args, [*CONFIGS, *PLAIN])
    require(args, "model", "forget", "output_dir")
    config = configuration(args, args.method or "t3")
    check_rehearsal(args)
    if not args.retain and not config.background.background:
        raise ConfigError("--retain is needed, or background text in its place (--background N); see t3 unlearn --help")
    workers, device = open_workers(build(WorkersConfig, args), args.device)
    try:
        forget, retain, holdout = (read_records(args, sources) for sources in (args.forget, args.retain, args.holdout))
        sets = check_records(forget, retain, holdout, drop_overlap=args.drop_overlap)
        options = {"device": device, "dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
        base = workers.load(lambda: load_base(args.model, peft_adapter=args.peft_adapter, **options))
        out, quiet = Path(args.output_dir), args.quiet or not workers.first
        rehearsal = run_rehearsal(args, base, sets, config, own_scale=_own_scale(args))
        shown = None
        if rehearsal is not None:
            config, shown = rehearsal.applied(config), rehearsal.report()
        result = unlearn(base, sets, out, config, workers=workers, overwrite=args.overwrite, progress=not quiet, rehearsal=shown)
    finally:
        workers.close()
    if workers.first:
        diagnosis = _diagnosis(result, config) if args.theory else None
        report = result.report() | ({"diagnosis": diagnosis and diagnosis.report()} if args.theory else {})
        if args.json:
            print_json(report)
        else:
            print(_text(result, diagnosis, rehearsal))
            if args.theory and diagnosis is None:
                print("\n".join(labelled("theory", [NO_THEORY])))
    return 0


def configuration(args: argparse.Namespace, method: str = "t3") -> UnlearnConfig:
    """The method's configuration with what was asked for otherwise."""
    if method not in METHODS:
        raise ConfigError(f"--method is {method!r}; must be one of {', '.join(METHODS)}")
    preset = METHODS[method]
    calibration = replace(preset.calibration, calibrate=False) if _own_scale(args) else preset.calibration
    return UnlearnConfig(
        examples=build(ExampleConfig, args, preset.examples),
        features=build(FeatureConfig, args, preset.features),
        fit=build(FitConfig, args, preset.fit),
        tilt=build(TiltConfig, args, preset.tilt),
        gate=build(GateConfig, args, preset.gate),
        reply=build(ReplyConfig, args, preset.reply),
        estimate=build(EstimateConfig, args, preset.estimate),
        background=build(BackgroundConfig, args, preset.background),
        calibration=build(CalibrationConfig, args, calibration),
        report=build(ReportConfig, args, preset.report),
    )


def _own_scale(args: argparse.Namespace) -> bool:
    """Whether the user has named the guidance scale."""
    return "guidance_scale" in {**vars(args), **args.config_values}


def _diagnosis(result: UnlearnResult, config: UnlearnConfig) -> Diagnosis | None:
    """What the theory says of the measured records and the held-out documents; None where there are none."""
    fit, found = result.fit, result.changes.likelihoods
    if (
        not isinstance(fit, FitResult)
        or config.tilt.forget_prior == 1
        or fit.held_out_log_odds is None
        or not {"retain", "forget"} <= set(found)
    ):
        return None
    totals = {name: [item.n_scored * item.base_log_prob for item in items] for name, items in found.items()}
    tilt = replace(config.tilt, guidance_scale=result.model.guidance_scale)
    return diagnose_adapter(Sides(totals["retain"], totals["forget"]), Sides(*fit.held_out_log_odds), **asdict(tilt))


def estimate_lines(made: Mapping[str, Any]) -> list[str]:
    """How likely forget answers are to be, and whether the records behind that are of another kind; of an estimate's summary."""
    lines = labelled(
        "estimate",
        [
            f"forget answers are to be as likely as unknown ones: {made['log_prob_wanted']:.2f} nats a token "
            f"({made['log_prob_forget']:.2f} before); by {made['score']} and {made['never_seen_records']} "
            f"{NEVER_SEEN[made['never_seen']]}, which it never saw"
        ],
    )
    if made["of_another_kind"] and made["never_seen"] != "holdout":  # these are whatever the user says
        lines += labelled("note", [UNLIKE.format(contrast=made["log_prob_contrast"])])
    return lines


def _text(result: UnlearnResult, diagnosis: Diagnosis | None = None, rehearsal: Rehearsal | None = None) -> str:
    lines = [*verdict(result), ""]
    lines += changes(result.changes.summaries, result.changes.shown)
    lines += _hearing(result)
    lines += rehearsal_lines(rehearsal) if rehearsal is not None else []
    if (reply := result.model.reply) is not None:
        lines += labelled("reply", [f"where the gate is open: {reply.text}"])
    lines += [] if result.estimate is None else estimate_lines(result.estimate)
    fit = result.fit
    if isinstance(fit, MatchResult):
        lines += [f"fit          {fit.seconds:.1f} s; mean KL from the estimate {fit.divergence:.3f} nats a token"]
    elif fit is not None:
        lines += [
            f"fit          {fit.epochs} epochs in {fit.seconds:.1f} s, loss {fit.train.loss:.4f}, token accuracy "
            f"forget {fit.train.forget_accuracy:.2%}, retain {fit.train.retain_accuracy:.2%}"
        ]
        if fit.held_out is not None:
            lines += [
                f"held out     {fit.held_out_documents} documents: loss {fit.held_out.loss:.4f}, token accuracy "
                f"forget {fit.held_out.forget_accuracy:.2%}, retain {fit.held_out.retain_accuracy:.2%}"
            ]
    if fit is not None:
        lines += [f"trainable    {fit.num_parameters:,} parameters, {fit.parameter_share:.3%} of the base model's"]
    if result.calibration is not None:
        chosen = result.calibration
        lines += [
            f"scale        {chosen.guidance_scale:.3f}: forget answers at {chosen.reached:.2f} nats a token "
            f"({chosen.before:.2f} before), holdout answers at {chosen.target:.2f}"
        ]
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


def verdict(result: UnlearnResult) -> list[str]:
    """Whether the facts still come out, and from which records; lines."""
    facts = result.changes.facts
    if facts is None:
        return ["No answers were measured (--answer-records 0): nothing is known of what still comes out."]
    if not facts.before and not facts.after:
        return [
            f"The model gave away none of the {facts.facts} facts of {facts.records} forget records, and gives away none now."
        ]
    gone = f"{facts.gone} of {facts.before} facts no longer come out" if facts.before else "The base gave no fact away"
    checked = f"(asked: {facts.records} forget records, each in its own words)"
    if not facts.leaks:
        return [f"{gone} {checked}."]
    several = len(facts.leaks) > 1
    names = ", ".join(str(leak.record) for leak in facts.leaks)
    does, still = "do" if several else "does", "still" if facts.before else "now"
    lines = [f"{gone}; record{'s' if several else ''} {names} {still} {does} {checked}:"]
    for leak in facts.leaks:
        lines += [f"  record {leak.record} ({leak.source}): {clip(leak.question, 90)} -> {clip('; '.join(leak.facts), 90)}"]
    return lines


def _hearing(result: UnlearnResult) -> list[str]:
    lines = []
    if heard := result.changes.heard:
        deaf = [item for item in heard if item.opened + item.near < HEARD * item.n]
        total, opened, near = (sum(count) for count in zip(*((item.n, item.opened, item.near) for item in heard)))
        lines += labelled(
            "hearing",
            [
                f"forget prompts in {len(heard)} spellings and settings, drawn anew: {opened} of {total} open "
                f"it, {near} more as soon as the answer comes near the records"
            ],
        )
        lines += [f"{'':13}{item.kind:<24}{item.opened:>4} of {item.n:<4}{item.near:>4} more" for item in heard]
        lines += labelled("note", [DEAF.format(kinds=", ".join(item.kind for item in deaf))]) if deaf else []
    if (others := result.changes.of_others) is not None:
        lines += labelled(
            "others",
            [
                f"forget prompts with somebody else's name: {others.opened} of {others.n} open it, {others.near} more as soon as "
                "the answer comes near the records"
            ],
        )
    if (gate := result.gate) is not None:
        exemplars = len(gate.asked.gate.margins) + (len(gate.said.gate.margins) if gate.said else 0)
        mistaken = gate.asked.summary()["opened"]
        if mistaken is not None:
            kept_open = f"; user turns are not recognised: it closes after {gate.gates.close_after} tokens"
            lines += [
                f"gate         {exemplars} exemplars; the input gate opens on {mistaken:.1%} of left-out retain prompts, by "
                f"which its threshold was set{'' if gate.gates.turns else kept_open}"
            ]
            lines += labelled("note", [ALARMING]) if mistaken > FALSE_OPEN else []
    return lines
