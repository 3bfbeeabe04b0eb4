"""`t3 chat`: talk to an unlearned model."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tempertilt.cli.flags import DecodingConfig, add_adapter, add_config, build
from tempertilt.cli.session import Session, open_session
from tempertilt.cli.text import side_by_side

HELP = "/compare base beside unlearned on or off, /reset start again, /help, /quit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_adapter(parser)
    parser.add_argument("--system-prompt", help="system message (default: the one that the adapter was fitted with)")
    parser.add_argument("--compare", action="store_true", help="show the base model's answer beside each one")
    add_config(parser, "decoding", DecodingConfig)


def run(args: argparse.Namespace) -> int:
    """Read lines until the end of input; answer each one with the conversation so far."""
    decoding = build(DecodingConfig, args)
    options = decoding.generate_options()
    session = open_session(args, decoding.seed)
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{HELP}, Ctrl-D ends", file=sys.stderr)
    history: list[tuple[str, str]] = []
    compare = args.compare
    while (line := _read(interactive)) is not None:
        if line == "/quit":
            break
        if line == "/reset":
            history = []
        elif line == "/compare":
            compare = not compare
            print(f"compare is {'on' if compare else 'off'}", file=sys.stderr)
        elif line.startswith("/"):
            print(HELP, file=sys.stderr)
        elif line:
            history.append(("user", line))
            history.append(("assistant", _reply(session, history, options, compare)))
    return 0


def _read(interactive: bool) -> str | None:
    """A line without surrounding space, or None at the end of input."""
    if interactive:
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.strip() if line else None


def _reply(session: Session, history: list[tuple[str, str]], options: dict[str, Any], compare: bool) -> str:
    """Print the answer, streamed unless it stands beside another; return it."""
    ids = session.encode(history)
    if compare:
        before, after = session.answers(ids, options, base=True)[0], session.answers(ids, options)[0]
        print(side_by_side(before, after), end="\n\n", flush=True)
        return after
    if options["num_beams"] > 1:  # beams can't be streamed
        answer = session.answers(ids, options)[0]
        print(answer, flush=True)
        return answer
    from transformers import TextStreamer

    streamer = TextStreamer(session.tokenizer, skip_prompt=True, skip_special_tokens=True)
    return session.answers(ids, options, streamer=streamer)[0]
