"""`t3 serve`: an OpenAI-compatible server of unlearned models."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tempertilt.cli.flags import add_config, add_model, build
from tempertilt.cli.streams import check_argument
from tempertilt.errors import ConfigError
from tempertilt.serving.backends import BACKENDS, choose_backend, start_vllm
from tempertilt.serving.config import ServeConfig
from tempertilt.serving.names import BASE, parse_adapters
from tempertilt.serving.sockets import LOOPBACK, address, listen

if TYPE_CHECKING:
    from tempertilt.serving.ledger import LedgerModels
    from tempertilt.serving.models import ServedModel

KEY = "T3_API_KEY"

log = logging.getLogger("tempertilt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_model(parser)
    group = parser.add_argument_group("adapters")
    group.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="adapter directory or hub id, under its own name or NAME; may be repeated (each forgets only its own)",
    )
    group.add_argument(
        "--ledger",
        metavar="[NAME=]DIR",
        help="instead of adapters: ledger of t3 requests whose parts act together; changes are taken up while it serves",
    )
    group.add_argument(
        "--scope", default="", help="where this server is, as tenant=acme,region=eu: parts for other places do not act"
    )
    group.add_argument("--reply", metavar="TEXT", help="guess, or what is said where a gate is open, instead of the adapters'")
    group.add_argument("--ignore-base-mismatch", action="store_true", help="use an adapter on a base that it was not fitted on")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="auto is vLLM where it is installed (default: auto)")
    parser.add_argument("--engine", dest="backend", choices=BACKENDS, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add_config(parser, "server", ServeConfig)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    config = build(ServeConfig, args)
    if not config.api_keys:
        config = replace(config, api_key=config.api_key or os.environ.get(KEY, ""))
    ledger = parse_adapters([args.ledger], "--ledger") if args.ledger else {}
    adapters = parse_adapters(args.adapter) if args.adapter or not ledger else {}
    _check_ledger(args, config)
    if args.reply is not None:
        check_argument(args.reply, "--reply")
    backend, why = choose_backend(args.backend, config, ledger=bool(ledger))
    if why:
        print(f"t3 serve: {why}", file=sys.stderr)
    if backend == "vllm":
        from tempertilt.integrations.vllm.serve import vllm_command

        if args.trust_remote_code or args.device != "auto" or args.ignore_base_mismatch:
            raise ConfigError("--trust-remote-code, --device and --ignore-base-mismatch are not for --backend vllm")
        served = {name: _active_parts(args, place) for name, place in ledger.items()} or adapters
        models = {**served, BASE: None} if config.serve_base else served
        start_vllm(*vllm_command(models, args.model, args.peft_adapter, config, args.dtype, args.reply))
    return _serve(args, config, adapters, ledger)


def _active_parts(args: argparse.Namespace, directory: str) -> dict[str, str]:
    """The parts of a ledger that act now, for vLLM; what changes later needs a restart, which is said."""
    from tempertilt.requests import Ledger
    from tempertilt.requests.state import parse_scope

    parts = Ledger(directory).active(scope=parse_scope(args.scope))
    if not parts:
        raise ConfigError(
            f"no part of the ledger {directory!r} acts here; must be --backend transformers, which serves the base then"
        )
    print(f"t3 serve: {len(parts)} parts act; changes of the ledger are taken up by a restart", file=sys.stderr)
    return {part.request_id: str(part.directory) for part in parts}


def _check_ledger(args: argparse.Namespace, config: ServeConfig) -> None:
    """Raise `ConfigError` for flags that do not go together."""
    if not args.ledger and args.scope:
        raise ConfigError("--ledger is needed for --scope")
    if args.ledger and args.adapter:
        raise ConfigError("--ledger and --adapter are both given; must be one: a ledger's model has all its parts")
    if args.ledger and args.reply is not None:
        raise ConfigError("--reply is for --adapter: each request of a ledger has its own (t3 requests add --reply)")
    if args.ledger and config.tilt_parameters != "refuse":
        raise ConfigError(
            f"tilt_parameters is {config.tilt_parameters!r}; must be refuse with --ledger: each part has its own tilt"
        )


def _serve(args: argparse.Namespace, config: ServeConfig, adapters: dict[str, str], ledger: dict[str, str]) -> int:
    from tempertilt.serving.app import build_app
    from tempertilt.serving.logs import log_as_json
    from tempertilt.serving.models import load_models
    from tempertilt.serving.server import run as run_server

    if config.log_format == "json":
        log_as_json()
    options: dict[str, Any] = {
        "check_base": not args.ignore_base_mismatch,
        "device": args.device,
        "dtype": args.dtype,
        "trust_remote_code": args.trust_remote_code,
    }
    with listen(config.host, config.port) as sock, ExitStack() as stack:
        models: Mapping[str, ServedModel]
        on_hangup = None
        if ledger:
            watched = stack.enter_context(_load_ledger(args, config, ledger, options))
            models, on_hangup = watched, watched.wake
        else:
            options |= {"serve_base": config.serve_base, "max_model_len": config.max_model_len, "reply": args.reply}
            models = load_models(adapters, args.model, args.peft_adapter, **options)
        if config.serve_base:
            log.warning("t3 serve: 'base' is the base model: it says what must not be said")
        if not (config.api_key or config.api_keys) and config.host not in LOOPBACK:
            log.warning(f"t3 serve: no --api-key, and {config.host} is not this machine alone: anybody may ask")
        app = build_app(models, config)
        run_server(app, config, sock, lambda: print(f"{address(sock)}/v1  {', '.join(models)}", flush=True), on_hangup)
    return 0


def _load_ledger(args: argparse.Namespace, config: ServeConfig, ledger: dict[str, str], options: dict[str, Any]) -> LedgerModels:
    from tempertilt.requests.state import parse_scope
    from tempertilt.serving.ledger import load_ledger_models

    [(name, directory)] = ledger.items()
    scope = parse_scope(args.scope)
    return load_ledger_models(name, directory, scope, config, model=args.model, peft_adapter=args.peft_adapter, **options)
