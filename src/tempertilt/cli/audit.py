"""`t3 audit`: attack an unlearned model, and write what came of it as a page of evidence."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tempertilt.audit.pace import OVER, parse_budget
from tempertilt.audit.page import Event, Request, percent, to_html, verdict
from tempertilt.audit.pdf import find_browser, print_pdf
from tempertilt.audit.run import AuditConfig, Sources, run_audit
from tempertilt.audit.served import Endpoint
from tempertilt.audit.summary import exceeds, summarise
from tempertilt.audit.texts import read_letter, read_prompts, read_translations, read_wordings
from tempertilt.cli.flags import add_adapter, add_config, add_config_file, add_ledger, build, read_config_file, require
from tempertilt.cli.records import FORMATS, add_selection, add_source, listed, read_records
from tempertilt.cli.session import open_ledger, open_model
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.lines import json_text
from tempertilt.errors import ConfigError
from tempertilt.models.adapter import WEIGHTS
from tempertilt.requests import Ledger
from tempertilt.storage import file_sha256, make_dir, write_text

CONFIGS = (AuditConfig, ExampleConfig)
FILES = ("forget", "retain", "holdout", "columns", "wordings", "translations", "unchanged_prompts")
PLAIN = (
    *FILES,
    "model",
    "peft_adapter",
    "adapter",
    "ledger",
    "output",
    "overwrite",
    "budget",
    "asked_by",
    "asked_on",
    "letter",
    "fail_above",
    "url",
    "served_model",
)
PAGE = "audit.html"
DEEDS = {
    "init": "the ledger was made",
    "add": "carried out: request",
    "revoke": "taken back: request",
    "renew": "put in force again: request",
}
"""What the kinds of events of a ledger mean."""
LEAKED = 1
"""Exit status where more than `--fail-above` comes out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    data = parser.add_argument_group("records")
    add_source(data, "--forget", f"records that are to stay unsaid: {FORMATS}")
    add_source(
        data, "--retain", "records that are to stay as they are: their values are not looked for, their answers must not change"
    )
    add_source(data, "--holdout", "records that the model never saw: for the membership attacks")
    add_selection(data)
    add_adapter(parser)
    add_ledger(parser)
    served = parser.add_argument_group(
        "a server of the same adapter or ledger, to be attacked in its place (a key that it needs: T3_API_KEY)"
    )
    served.add_argument("--url", help="as http://localhost:8000/v1; the base model and likelihoods are those of the model here")
    served.add_argument(
        "--served-model", metavar="NAME", help="its name there (default: the one that the server lists, if it is one)"
    )
    more = parser.add_argument_group("prompts of your own")
    more.add_argument("--wordings", metavar="FILE", help="prompts to attack with, one a line, with {question} or {name} in them")
    more.add_argument(
        "--translations", metavar="FILE", help="questions in other languages: JSON lines of record (from 1), language, question"
    )
    add_source(
        more, "--unchanged-prompts", "prompts that must not change: JSON lines, CSV or lines of text; each file is a group"
    )
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="FILE", help=f"page to write, with a .json beside it (default: {PAGE})")
    out.add_argument("--overwrite", action="store_true", help="begin anew where another unfinished audit has the same --output")
    out.add_argument("--pdf", action="store_true", help="print the page as PDF beside it, by a headless Chromium")
    out.add_argument("--show-values", action="store_true", help="show personal values in the report instead of masking them")
    out.add_argument("--budget", metavar="TIME", help="stop after this time, as in 10m; each kind gets the same share")
    out.add_argument(
        "--fail-above", type=float, metavar="RATE", help="exit with 1 if the upper bound of the leak rate is above this"
    )
    add_config_file(out)  # type: ignore[arg-type]
    case = parser.add_argument_group("case")
    case.add_argument("--asked-by", metavar="TEXT", help="who asked for the removal, for the page")
    case.add_argument("--asked-on", metavar="DATE", help="when, for the page")
    case.add_argument("--letter", metavar="FILE", help="letter to the person in your own words, with $fields (default: English)")
    for title, config in zip(("extent", "examples"), CONFIGS):
        add_config(parser, title, config)


def run(args: argparse.Namespace) -> int:
    """Attack, write the report, print the verdict."""
    read_config_file(args, [*CONFIGS, *PLAIN])
    require(args, "forget")
    if args.fail_above is not None and not 0 <= args.fail_above < 1:
        raise ConfigError(f"--fail-above is {args.fail_above}; must be a number >= 0 and < 1")
    output, budget = Path(args.output or PAGE), None if args.budget is None else parse_budget(args.budget)
    if output.suffix not in (".html", ".htm"):
        raise ConfigError(f"--output is {str(output)!r}; must be a name that ends with .html")
    if args.pdf:
        find_browser()
    make_dir(output.parent)
    letter = read_letter(args.letter)
    config, examples = build(AuditConfig, args), build(ExampleConfig, args)
    sources = _sources(args)
    model, tokenizer, system_prompt = open_ledger(args) if args.ledger else open_model(args)
    if system_prompt is not None and "system_prompt" not in {**vars(args), **args.config_values}:
        examples = replace(examples, system_prompt=system_prompt)
    endpoint = _endpoint(args)
    journal_path = output.with_name(f".{output.stem}.journal.jsonl")
    if args.overwrite:
        journal_path.unlink(missing_ok=True)
    audit = run_audit(
        model,
        tokenizer,
        sources,
        config,
        journal_path,
        examples=examples,
        budget=budget,
        show_values=args.show_values,
        progress=not args.quiet,
        endpoint=endpoint,
    )
    summary = summarise(audit)
    request = _request(args, model)
    write_text(output.with_suffix(".json"), json_text({"request": asdict(request), **summary}, indent=1) + "\n")
    write_text(output, to_html(summary, request, letter))
    if not any(skipped.why == OVER for skipped in audit.skipped):
        journal_path.unlink(missing_ok=True)
    files = [output, output.with_suffix(".json")]
    if args.pdf:
        files.append(print_pdf(output))
    print("\n".join(_lines(summary, files)))
    if args.fail_above is not None and exceeds(summary, args.fail_above):
        bound = percent(summary["all"]["upper_bound_95"])
        print(f"t3 audit: the upper bound {bound} is above --fail-above {args.fail_above:g}", file=sys.stderr)
        return LEAKED
    return 0


def _endpoint(args: argparse.Namespace) -> Endpoint | None:
    """The server that the flags name."""
    if args.url is None:
        return None
    if not (args.adapter or args.ledger):
        raise ConfigError("--url needs --adapter or --ledger: the one that is served there")
    version = Ledger(args.ledger).version if args.ledger else ""
    endpoint = Endpoint(args.url, args.served_model or "", os.environ.get("T3_API_KEY", ""), version)
    return endpoint if endpoint.model else replace(endpoint, model=endpoint.only_model())


def _sources(args: argparse.Namespace) -> Sources:
    """The records and prompts that the flags name."""
    forget, retain, holdout = (read_records(args, getattr(args, name)) for name in ("forget", "retain", "holdout"))
    return Sources(
        forget,
        retain,
        holdout,
        read_wordings(args.wordings),
        read_translations(args.translations, len(forget)),
        read_prompts(listed(args.unchanged_prompts)),
    )


def _request(args: argparse.Namespace, model: Any) -> Request:
    """What the page says of the case: from flags and, of an adapter in a directory, from its files."""
    base, peft = _base(args, model)
    named = [f"base model {base}", *([f"with the PEFT adapter {peft}"] if peft else [])]
    named += [f"and the adapter {args.adapter}"] if args.adapter else []
    named += [f"and the requests in force of the ledger {args.ledger}"] if args.ledger else []
    named += [f"as it is served at {args.url}"] if args.url else []
    weights = Path(args.adapter or "") / WEIGHTS
    local = bool(args.adapter) and weights.is_file()
    dated = f", its file of {datetime.date.fromtimestamp(weights.stat().st_mtime)}" if local else ""
    sources = [path for name in ("forget", "retain", "holdout") for path in listed(getattr(args, name)) if Path(path).is_file()]
    files = [*sources, *([str(weights)] if local else [])]
    return Request(
        asked_by=args.asked_by or "",
        asked_on=args.asked_on or "",
        model=" ".join(named),
        done=_done(args, dated),
        command=shlex.join(["t3", "audit", *args.words]),
        files={path: file_sha256(Path(path)) for path in files},
        history=_history(Path(args.ledger)) if args.ledger else (),
        filtered=bool(args.adapter or args.ledger),
    )


def _base(args: argparse.Namespace, model: Any) -> tuple[str, str | None]:
    """The base model and its PEFT adapter, as they were named."""
    if args.ledger:
        name, peft = Ledger(args.ledger).base
    else:
        config = getattr(model, "adapter_config", None)
        name, peft = (config.base_model, config.peft_adapter) if config else (args.model, None)
    return args.model or name, args.peft_adapter or peft


def _done(args: argparse.Namespace, dated: str) -> str:
    """What was done, in words.

    Args:
        dated: the adapter's date, as its file has it; empty where there is no file.
    """
    if args.ledger:
        return f"filters on what the model says act, one for each request in force of the ledger {Path(args.ledger).name}"
    if args.adapter:
        return f"a filter on what the model says acts (adapter {Path(args.adapter).name}{dated})"
    return "nothing: no adapter is named, the model is as it is"


def _history(directory: Path) -> list[Event]:
    """The events of a ledger, oldest first."""
    return [
        Event(event.time, event.by, " ".join(filter(None, [DEEDS[event.kind], event.request, event.payload.get("why")])))
        for event in Ledger(directory).events()
    ]


def _lines(summary: dict[str, Any], files: list[Path]) -> list[str]:
    """What is printed at the end."""
    judged = verdict(summary)
    kinds = []
    for kind in summary["kinds"]:
        limit = " (known limit)" if kind["limit"] else ""
        kinds.append(f"  {kind['name']:<24}{kind['leaks']:>5} of {kind['n']:<6}at most {percent(kind['upper_bound_95'])}{limit}")
    skipped = [f"  not done: {item['kind']} ({item['left']} attempts: {item['why']})" for item in summary["skipped"]]
    return [judged.title, f"{judged.text} {judged.sure}", *kinds, *skipped, *map(str, files)]
