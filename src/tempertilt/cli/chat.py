"""`t3 chat`: talk to an unlearned model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from tempertilt.cli.flags import DecodingConfig, add_adapter, add_config, add_ledger, build
from tempertilt.cli.session import Session, open_session
from tempertilt.cli.streams import stdin_lines
from tempertilt.cli.text import side_by_side
from tempertilt.errors import DataError
from tempertilt.models.generation import Decoding

HELP = "/compare base beside unlearned on or off, /reset start again, /help, /quit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_adapter(parser)
    add_ledger(parser)
    parser.add_argument("--system-prompt", help="system message (default: the one that the adapter was fitted with)")
    parser.add_argument("--compare", action="store_true", help="show the base model's answer beside each one")
    add_config(parser, "decoding", DecodingConfig)


def run(args: argparse.Namespace) -> int:
    """Read lines until the end of input; answer each one with the conversation so far."""
    config = build(DecodingConfig, args)
    session = open_session(args, config.seed)
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{HELP}, Ctrl-D ends", file=sys.stderr)
    history: list[tuple[str, str]] = []
    compare = args.compare
    for line in _lines(interactive):
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
            chat = [*history, ("user", line)]
            try:
                history = [*chat, ("assistant", _reply(session, chat, config.decoding(), compare))]
            except DataError as error:
                if not interactive:
                    raise DataError(f"{error}; /reset begins again") from error
                print(f"{error}; /reset begins again", file=sys.stderr)
    return 0


def _lines(interactive: bool) -> Iterator[str]:
    """The lines of standard input without surrounding space, each asked for on a terminal."""
    lines = stdin_lines()
    while True:
        if interactive:
            print("> ", end="", file=sys.stderr, flush=True)
        if (line := next(lines, None)) is None:
            return
        yield line.strip()


def _reply(session: Session, chat: list[tuple[str, str]], decoding: Decoding, compare: bool) -> str:
    """Print the answer, streamed unless it stands beside another; return it."""
    ids = session.encode(chat)
    if compare:
        before, after = (session.answers([ids], decoding, base=base)[0][0] for base in (True, False))
        print(side_by_side(before, after), end="\n\n", flush=True)
        return after
    if decoding.num_beams > 1:  # beams can't be streamed
        answer = session.answers([ids], decoding)[0][0]
        print(answer, flush=True)
        return answer
    from transformers import TextStreamer

    streamer = TextStreamer(session.tokenizer, skip_prompt=True, skip_special_tokens=True)
    return session.answers([ids], decoding, streamer=streamer)[0][0]
