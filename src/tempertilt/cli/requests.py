"""`t3 requests`: the ledger of removal requests."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tempertilt.cli.flags import add_config, add_config_file, add_device, add_model, build, read_config_file, require
from tempertilt.cli.records import FORMATS, add_selection, add_source, read_columns, read_records
from tempertilt.cli.streams import check_argument, print_json
from tempertilt.data.lines import json_text
from tempertilt.errors import ConfigError
from tempertilt.requests import Author, Details, Ledger, RequestState
from tempertilt.requests.ledger import verify
from tempertilt.requests.state import ACTIVE
from tempertilt.storage import write_text

if TYPE_CHECKING:
    from tempertilt.requests.adding import Added

LEDGER = "T3_LEDGER"
WARNING = "The model's weights are unchanged and still hold the knowledge; serve it with the ledger's parts on."


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    status: int = ACTIONS[args.action].run(args)
    return status


# --- flags ----------------------------------------------------------------------------------------------------------------


def _add_ledger(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ledger", metavar="DIR", help=f"directory of the ledger (default: the environment's {LEDGER})")


def _add_author(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who and when")
    group.add_argument("--by", metavar="PERSON", help="the person who does this (default: the environment's T3_ACTOR)")
    group.add_argument("--at", metavar="TIME", help="another time than now, as 2026-01-31T09:30:00+00:00")
    group.add_argument("--sign-key", metavar="FILE", help="Ed25519 private key (PEM) with which the ledger is signed")


def _add_key_file(parser: Any, help: str = "key of the ledger's keyed hashes (default: where t3 requests init made it)") -> None:
    parser.add_argument("--key-file", metavar="FILE", help=help)


def _init_flags(parser: argparse.ArgumentParser) -> None:
    from tempertilt.cli.unlearn import OPTIONS, RECIPES

    parser.add_argument("directory", metavar="DIR", help="directory of the new ledger")
    add_model(parser)
    data = parser.add_argument_group(f"records ({FORMATS})")
    add_source(data, "--retain", "what must stay unchanged; without it, text that the model itself writes")
    add_selection(data, limit=False)
    _add_key_file(parser, "where the key of the keyed hashes is, or is made: not in the ledger. Keep it safe")
    _add_author(parser)
    add_config_file(parser)
    for title, config in OPTIONS.items():
        add_config(parser, title, config, presets={"t3": RECIPES["t3"]})


def _add_flags(parser: argparse.ArgumentParser) -> None:
    _add_ledger(parser)
    data = parser.add_argument_group(f"records ({FORMATS}); each flag takes several and may be repeated")
    add_source(data, "--forget", "what the model must no longer say")
    add_source(data, "--holdout", "optional: like these, but never seen by the model; calibrates the estimate")
    add_selection(data)
    data.add_argument("--drop-overlap", action="store_true", help="drop duplicate records instead of refusing them")
    add_config(parser, "request", Details)
    _add_key_file(parser)
    parser.add_argument("--evidence-dir", metavar="DIR", help="keep the whole report there, answers in clear among it")
    _add_author(parser)
    add_device(parser.add_argument_group("model"))
    parser.add_argument("--json", action="store_true", help="print the event as JSON")


def _list_flags(parser: argparse.ArgumentParser) -> None:
    _add_ledger(parser)
    parser.add_argument("--json", action="store_true", help="print the requests as JSON")


def _show_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="ID", help="the request")
    _add_ledger(parser)


def _revoke_flags(parser: argparse.ArgumentParser) -> None:
    _show_flags(parser)
    parser.add_argument("--why", help="the reason; kept as it is")
    parser.add_argument("--keep-files", action="store_true", help="leave its part's files, so that it can be renewed")
    _add_author(parser)


def _renew_flags(parser: argparse.ArgumentParser) -> None:
    _show_flags(parser)
    parser.add_argument("--why", help="the reason; kept as it is")
    parser.add_argument("--expires", metavar="DATE", help="its new last day, as 2027-01-31 (default: it has no end)")
    _add_author(parser)


def _verify_flags(parser: argparse.ArgumentParser) -> None:
    _add_ledger(parser)
    parser.add_argument("--anchor", metavar="FILE", help="an earlier copy of ledger.head, kept elsewhere")
    parser.add_argument("--public-key", metavar="HEX", help="the key that must have signed (default: the one that it names)")
    parser.add_argument("--json", action="store_true", help="print what is wrong as JSON")
    parser.add_argument(
        "--audit",
        metavar="FILE",
        help="where nothing is wrong, attack the model as it is now: t3 audit with these options (YAML), fail_above among them",
    )


def _export_flags(parser: argparse.ArgumentParser) -> None:
    _add_ledger(parser)
    parser.add_argument("--output", metavar="FILE", help="write there instead of on standard output")


def _covers_flags(parser: argparse.ArgumentParser) -> None:
    _add_ledger(parser)
    data = parser.add_argument_group(f"records ({FORMATS})")
    add_source(data, "--records", "records to look for")
    add_selection(data)
    data.add_argument("--subject", help="a person to look for")
    _add_key_file(parser)


# --- actions --------------------------------------------------------------------------------------------------------------


def _open(args: argparse.Namespace) -> Ledger:
    """The ledger, put in order if a process was killed."""
    ledger = Ledger(_directory(args))
    ledger.recover()
    return ledger


def _directory(args: argparse.Namespace) -> Path:
    named = args.ledger or os.environ.get(LEDGER)
    if not named:
        raise ConfigError(f"--ledger is needed: the directory that t3 requests init made; or name it in {LEDGER}")
    return Path(named)


def _author(args: argparse.Namespace) -> Author:
    at = None
    if args.at is not None:
        try:
            at = datetime.fromisoformat(args.at.replace("Z", "+00:00"))
        except ValueError as error:
            raise ConfigError(f"--at is {args.at!r}; must be a time as 2026-01-31T09:30:00+00:00") from error
    return Author.from_environment(args.by, at, _path(args.sign_key))


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _init(args: argparse.Namespace) -> int:
    from tempertilt.cli.unlearn import OPTIONS, configuration
    from tempertilt.models.base import load_base

    read_config_file(args, [*OPTIONS.values(), "model", "peft_adapter", "retain", "columns"])
    require(args, "model", "key_file")
    author, config = _author(args), configuration(args)
    options = {"device": args.device, "dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    base = load_base(args.model, peft_adapter=args.peft_adapter, **options)
    ledger = Ledger.create(
        args.directory,
        base,
        args.retain or [],
        author,
        key_file=Path(args.key_file),
        config=config,
        columns=read_columns(args),
        progress=not args.quiet,
    )
    print(f"{ledger.directory}: a ledger for {base.name}, version {ledger.version}")
    print(
        f"The key is in {args.key_file}: whoever adds a request needs it. Without it nobody can tell which records are covered."
    )
    return 0


def _add(args: argparse.Namespace) -> int:
    require(args, "id", "forget")
    details = build(Details, args)
    for flag in ("requested_by", "reason", "scope", "note", "reply"):
        check_argument(getattr(details, flag) or "", "--" + flag.replace("_", "-"))
    ledger, author = _open(args), _author(args)
    forget, holdout = (read_records(args, sources) for sources in (args.forget, args.holdout))
    added = ledger.add(
        forget,
        details,
        author,
        holdout=holdout,
        key_file=_path(args.key_file),
        evidence_dir=_path(args.evidence_dir),
        drop_overlap=args.drop_overlap,
        progress=not args.quiet,
        device=args.device,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
    )
    if args.json:
        print_json(vars(added.event))
    else:
        print("\n".join(_added_lines(added, ledger, args.evidence_dir)))
    return 0


def _added_lines(added: Added, ledger: Ledger, evidence_dir: str | None) -> list[str]:
    """What was measured, in numbers: an answer may hold what is to be forgotten."""
    facts, clash, event = added.result.changes.facts, added.interference, added.event
    records = len(event.payload["records"])
    lines = [f"{event.request} added as event {event.sequence}: {records} records; version {ledger.version}"]
    if facts is not None:
        still = f"; still given away by record {', '.join(str(leak.record) for leak in facts.leaks)}" if facts.leaks else ""
        lines += [f"facts         {facts.gone} of {facts.before} no longer come out (asked: {facts.records} records){still}"]
    if clash.retained is not None:
        opened, texts = clash.retained
        lines += [f"interference  opens on {opened} of {texts} retained texts, measured by gates made without them"]
    lines += [f"interference  {n} of {records} records open the gates of {other}, too" for other, n in clash.parts.items()]
    kept = f"; the whole report is in {Path(evidence_dir) / event.request}" if evidence_dir else ""
    lines += [f"kept          no text of the records, none of their states{kept}"]
    return [*lines, f"time          {added.seconds:.1f} s", "", WARNING]


def _list(args: argparse.Namespace) -> int:
    ledger, now = _open(args), datetime.now(timezone.utc)
    states = ledger.requests()
    if args.json:
        print_json([_as_json(state, now) for state in states])
        return 0
    width = max([2, *(len(state.id) for state in states)])
    print(f"{'ID':<{width}}  {'state':<9}{'added (UTC)':<18}{'expires':<12}{'records':>7}  by, scope")
    for state in states:
        scope = ",".join(f"{name}={value}" for name, value in state.scope.items())
        print(
            f"{state.id:<{width}}  {state.status(now):<9}{state.added[:16].replace('T', ' '):<18}{state.expires or '-'!s:<12}"
            f"{len(state.records):>7}  {', '.join(filter(None, (state.by, scope)))}"
        )
    acting = sum(state.status(now) == ACTIVE for state in states)
    print(f"{len(states)} requests, {acting} of them act; version {ledger.version}")
    return 0


def _as_json(state: RequestState, now: datetime) -> dict[str, Any]:
    return {**vars(state), "state": state.status(now), "records": sorted(state.records)}


def _show(args: argparse.Namespace) -> int:
    ledger = _open(args)
    state = ledger.request(args.name)
    about = [event for event in ledger.events() if event.request == args.name]
    print_json({"request": _as_json(state, datetime.now(timezone.utc)), "events": [vars(event) for event in about]})
    return 0


def _revoke(args: argparse.Namespace) -> int:
    require(args, "why")
    ledger = _open(args)
    event = ledger.revoke(args.name, _author(args), why=check_argument(args.why, "--why"), keep_files=args.keep_files)
    files = "its part's files stay" if args.keep_files else "its part is deleted"
    print(f"{args.name} revoked as event {event.sequence}: {files}; version {ledger.version}")
    return 0


def _renew(args: argparse.Namespace) -> int:
    require(args, "why")
    ledger = _open(args)
    event = ledger.renew(args.name, _author(args), why=check_argument(args.why, "--why"), expires=args.expires)
    until = "without end" if args.expires is None else f"until {args.expires}"
    print(f"{args.name} renewed as event {event.sequence}: it acts {until}; version {ledger.version}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    directory = _directory(args)
    if args.audit is not None and args.json:
        raise ConfigError("--audit and --json are both given; must be one: the audit writes a report with a .json beside it")
    faults = verify(directory, _path(args.anchor), args.public_key)
    if args.json:
        print_json([vars(fault) for fault in faults])
    elif faults:
        print("\n".join(map(str, faults)))
    else:
        ledger = Ledger(directory)
        parts = sum(state.has_files for state in ledger.requests())
        print(f"nothing is wrong: {len(ledger.events())} events, {parts} parts; version {ledger.version}")
    if faults or args.audit is None:
        return 1 if faults else 0
    return _audit(directory, args)


def _audit(directory: Path, args: argparse.Namespace) -> int:
    """`t3 audit` of the requests in force, with the options of a file."""
    from tempertilt.cli import main

    words = ["audit", "--ledger", str(directory), "--config", args.audit, *(["--quiet"] if args.quiet else [])]
    return main([*words, *(["--debug"] if args.debug else [])])


def _export(args: argparse.Namespace) -> int:
    exported = _open(args).export()
    if args.output is None:
        print_json(exported)
    else:
        write_text(Path(args.output), json_text(exported, indent=2) + "\n")
    return 0


def _covers(args: argparse.Namespace) -> int:
    """Status 0 where all that is asked for is covered by a request that acts, else 1."""
    if not args.records and args.subject is None:
        raise ConfigError("--records or --subject is needed; see t3 requests covers --help")
    ledger, now, key_file = _open(args), datetime.now(timezone.utc), _path(args.key_file)
    found = []
    if args.records:
        records = read_records(args, args.records)
        found += list(zip((record.source for record in records), ledger.covering(records, key_file)))
    if args.subject is not None:
        found.append(("the subject", ledger.about(args.subject, key_file)))
    for what, states in found:
        print(f"{what}: {', '.join(f'{state.id} ({state.status(now)})' for state in states) or 'not covered'}")
    return 0 if all(any(state.status(now) == ACTIVE for state in states) for _, states in found) else 1


class Action(NamedTuple):
    """What the verb can do: its help, what adds its flags, what does it and returns the exit status."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


ACTIONS = {
    "init": Action("make a ledger for a model", _init_flags, _init),
    "add": Action("make the part of a new request, and record it", _add_flags, _add),
    "list": Action("list the requests", _list_flags, _list),
    "show": Action("show a request and its events as JSON", _show_flags, _show),
    "revoke": Action("take a request back: its part acts no longer; nothing is fitted again", _revoke_flags, _revoke),
    "renew": Action("let a request act until another day", _renew_flags, _renew),
    "verify": Action("find what was changed in the ledger or its parts; status 1 if anything was", _verify_flags, _verify),
    "export": Action("write all events as JSON", _export_flags, _export),
    "covers": Action("find the requests that cover records or a person; status 1 if none acts", _covers_flags, _covers),
}
