"""`t3 unlearn --rehearse`: its flag, its run, and what is printed of it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from tempertilt.cli.flags import build
from tempertilt.cli.records import read_records
from tempertilt.cli.text import labelled
from tempertilt.data.records import RecordSets
from tempertilt.errors import ConfigError
from tempertilt.fitting.launch import WorkersConfig
from tempertilt.fitting.recipe import UnlearnConfig
from tempertilt.models.base import BaseModel
from tempertilt.suites.rehearsal import Rehearsal, RehearsalConfig, rehearse

HELP = (
    "first teach a copy of the model records that it has never seen and unlearn these, to measure what these options achieve on "
    "this model, and to choose the guidance scale; without SOURCE: holdout records, else made-up ones"
)
SOURCES = {"records": "given records", "holdout": "holdout records", "made up": "made-up records"}
MANY = 0.5  # share of the facts that a taught model must give away for the rehearsal to say anything
NOT_TAUGHT = "the records were hardly learned, so this rehearsal says little: raise --rehearse-epochs"


def add_rehearsal(group: Any) -> None:
    """`--rehearse`."""
    group.add_argument("--rehearse", action="extend", nargs="*", metavar="SOURCE", help=HELP)


def check_rehearsal(args: argparse.Namespace) -> None:
    """Raise `ConfigError` if a rehearsal is asked for that can't be held."""
    if args.rehearse is not None and build(WorkersConfig, args).workers != "local":
        raise ConfigError("--rehearse is for one process; rehearse with --workers local first, then give its guidance scale")


def run_rehearsal(
    args: argparse.Namespace, base: BaseModel, sets: RecordSets, config: UnlearnConfig, *, own_scale: bool
) -> Rehearsal | None:
    """The rehearsal that was asked for. Where the user has named the guidance scale, none is chosen."""
    if args.rehearse is None:
        return None
    options = build(RehearsalConfig, args)
    if own_scale:
        options = replace(options, rehearse_choose=False)
    records = read_records(args, args.rehearse) if args.rehearse else []
    return rehearse(base, sets, config, options, records=records, progress=not args.quiet)


def rehearsal_lines(rehearsal: Rehearsal) -> list[str]:
    """What a rehearsal shows, as a block."""
    taught, unlearned = rehearsal.taught, rehearsal.unlearned
    first = (
        f"{rehearsal.records} {SOURCES[rehearsal.source]} that the model had never seen were taught to a copy of it and "
        "unlearned with these options; the model itself is the true reference:"
    )
    rows = [
        _row("", "taught", "unlearned", "reference"),
        _row("facts that come out", rehearsal.facts_taught, rehearsal.facts_unlearned, rehearsal.facts_reference)
        + f"   of {rehearsal.facts}, in {rehearsal.answers} answers",
        _row("KL to the reference, nats", f"{taught.kl:.2f}", f"{unlearned.kl:.2f}", "0") + "   a token of these answers",
        _row("same most likely token", f"{taught.same_most_likely:.2f}", f"{unlearned.same_most_likely:.2f}", "1"),
        _row("KS distance of log p", f"{taught.ks:.2f}", f"{unlearned.ks:.2f}", "0"),
        _row("membership AUC", f"{taught.auc:.2f}", f"{unlearned.auc:.2f}", f"{rehearsal.reference_auc:.2f}")
        + f"   against {rehearsal.unseen} others, never seen",
        f"retain answers unchanged: {rehearsal.retain_unchanged} of {rehearsal.retain_answers}",
    ]
    if rehearsal.choices:
        tried = ", ".join(f"{choice.guidance_scale:g} ({choice.kl:.2f} nats)" for choice in rehearsal.choices)
        rows.append(f"guidance scale {rehearsal.guidance_scale:g}, by the KL, of {tried}")
    lines = labelled("rehearsal", [first]) + [f"{'':13}{row}" for row in rows]
    if rehearsal.facts_taught < MANY * rehearsal.facts:
        lines += labelled("note", [NOT_TAUGHT])
    return lines


def _row(name: str, taught: object, unlearned: object, reference: object) -> str:
    return f"{name:<30}{taught!s:>9}{unlearned!s:>11}{reference!s:>11}"
