"""`t3 generate`: answer prompts with an unlearned model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tempertilt.cli.flags import DecodingConfig, add_adapter, add_config, build
from tempertilt.cli.session import Session, open_session
from tempertilt.cli.text import side_by_side
from tempertilt.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_adapter(parser)
    what = parser.add_argument_group("prompts (default: one a line from standard input)")
    what.add_argument("--prompt", action="append", help="a question; may be given several times")
    what.add_argument("--prompts-file", metavar="FILE", help="text file with a question on each line")
    what.add_argument("--system-prompt", help="system message (default: the one that the adapter was fitted with)")
    what.add_argument("--raw", action="store_true", help="continue the prompt as it is, without a chat template")
    add_config(parser, "decoding", DecodingConfig)
    parser.add_argument("--num-return-sequences", type=int, default=1, help="answers to each prompt (default: 1)")
    parser.add_argument("--compare", action="store_true", help="show the base model's answer beside it")
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def run(args: argparse.Namespace) -> int:
    """Answer every prompt."""
    decoding = build(DecodingConfig, args)
    options = decoding.generate_options() | {"num_return_sequences": args.num_return_sequences}
    if not options["do_sample"] and args.num_return_sequences > decoding.num_beams:
        raise DataError(f"--num-return-sequences {args.num_return_sequences} needs --do-sample, or as many --num-beams")
    prompts = _prompts(args)
    session = open_session(args, decoding.seed)
    rows = [_answer(session, prompt, args, options) for prompt in prompts]
    if args.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    return 0


def _answer(session: Session, prompt: str, args: argparse.Namespace, options: dict[str, object]) -> dict[str, object]:
    ids = session.encode_raw(prompt) if args.raw else session.encode([("user", prompt)])
    after = session.answers(ids, options)
    row: dict[str, object] = {"prompt": prompt, "answers": after}
    before = session.answers(ids, options, base=True) if args.compare else []
    if args.compare:
        row["base_answers"] = before
    if not args.json:
        print(f"> {prompt}", flush=True)
        for i, text in enumerate(after):
            print(side_by_side(before[i], text) if args.compare else text, end="\n\n", flush=True)
    return row


def _prompts(args: argparse.Namespace) -> list[str]:
    prompts = list(args.prompt or [])
    if args.prompts_file:
        try:
            prompts += Path(args.prompts_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--prompts-file {args.prompts_file!r} cannot be read as UTF-8 text: {error}") from error
    elif not prompts:
        if sys.stdin.isatty():
            print("a question on each line, end with Ctrl-D", file=sys.stderr)
        prompts = sys.stdin.read().splitlines()
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts:
        raise DataError("there is no prompt; give --prompt TEXT, --prompts-file FILE, or lines on standard input")
    return prompts
