"""`t3 playground`: a page in the browser that shows what an unlearned model does, token by token."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path

from tempertilt.cli.flags import add_adapter, require
from tempertilt.cli.session import open_model
from tempertilt.data.examples import ExampleConfig
from tempertilt.playground.app import Playground, import_gradio, serve
from tempertilt.playground.records import report_records
from tempertilt.serving.sockets import LOOPBACK, listen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_adapter(parser)
    parser.add_argument("--system-prompt", help="system message (default: the one that the adapter was fitted with)")
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    server.add_argument("--port", type=int, default=7860, help="port; 0 = any that is free (default: 7860)")


def run(args: argparse.Namespace) -> int:
    """Load the model and serve the page until interrupted."""
    require(args, "adapter")
    import_gradio()
    with listen(args.host, args.port) as listening:
        if args.host not in LOOPBACK:
            print(
                f"t3 playground: {args.host} can be reached from other machines, and the page has no password: whoever opens it "
                "reads in the base column what the model is to forget",
                file=sys.stderr,
            )
        model, tokenizer, fitted_with = open_model(args)
        examples = ExampleConfig.for_chats(args.system_prompt, fitted_with)
        playground = Playground(
            model, tokenizer, examples, report_records(args.adapter), model.adapter_config.base_model, Path(args.adapter).name
        )
        with suppress(KeyboardInterrupt):  # how it is meant to end
            serve(playground, listening, args.host, lambda address: print(f"{address}  (Ctrl-C ends)", flush=True))
    return 0
