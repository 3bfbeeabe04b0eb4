"""`t3 generate`: answer prompts with an unlearned model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tempertilt.cli.flags import DecodingConfig, add_adapter, add_config, add_ledger, build
from tempertilt.cli.session import Session, open_session
from tempertilt.cli.streams import check_argument, print_json, read_stdin
from tempertilt.cli.text import side_by_side
from tempertilt.data.lines import read_text, split_lines
from tempertilt.data.record import shorten
from tempertilt.errors import ConfigError, DataError
from tempertilt.models.generation import Decoding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_adapter(parser)
    add_ledger(parser)
    what = parser.add_argument_group("prompts (default: one a line from standard input)")
    what.add_argument("--prompt", action="append", help="a question; may be given several times")
    what.add_argument(
        "--prompts-file",
        action="append",
        metavar="FILE",
        help="text file with a question on each line; may be given several times",
    )
    what.add_argument("--system-prompt", help="system message (default: the one that the adapter was fitted with)")
    what.add_argument("--raw", action="store_true", help="continue the prompt as it is, without a chat template")
    add_config(parser, "decoding", DecodingConfig)
    parser.add_argument("--num-return-sequences", type=int, default=1, help="answers to each prompt (default: 1)")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts answered at a time, if none is sampled (default: 16)")
    parser.add_argument("--compare", action="store_true", help="show the base model's answer beside it")
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def run(args: argparse.Namespace) -> int:
    """Answer every prompt."""
    config = build(DecodingConfig, args)
    decoding = config.decoding(args.num_return_sequences)
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size is {args.batch_size}; must be a whole number >= 1")
    prompts = _prompts(args)
    session = open_session(args, config.seed)
    encode = session.encode_raw if args.raw else lambda text, name: session.encode([("user", text)], name)
    ids = [encode(prompt.text, prompt.source) for prompt in prompts]
    rows = []
    for prompt, answers in zip(prompts, _answers(session, ids, decoding, args)):
        base = {"base_answers": answers.base} if args.compare else {}
        rows.append({"prompt": prompt.text, "answers": answers.unlearned, **base})
        if not args.json:
            _print(prompt.text, answers, args.compare)
    if args.json:
        print_json(rows)
    return 0


class Prompt(NamedTuple):
    """A prompt and where it was given, as errors name it."""

    text: str
    source: str


class Answers(NamedTuple):
    """The answers to a prompt, and those of the base model where they are to be compared."""

    unlearned: list[str]
    base: list[str]


def _answers(
    session: Session, prompts: Sequence[Sequence[int]], decoding: Decoding, args: argparse.Namespace
) -> Iterator[Answers]:
    """The answers in the order of the prompts, each as soon as it and those before it are there."""
    done: dict[int, Answers] = {}
    given = 0
    for batch in session.plan_batches(prompts, decoding, args.batch_size):
        chosen = [prompts[i] for i in batch]
        after = session.answers(chosen, decoding)
        before = session.answers(chosen, decoding, base=True) if args.compare else [[] for _ in chosen]
        done.update(zip(batch, map(Answers, after, before)))
        while given in done:
            yield done.pop(given)
            given += 1


def _print(prompt: str, answers: Answers, compare: bool) -> None:
    print(f"> {prompt}", flush=True)
    for i, text in enumerate(answers.unlearned):
        print(side_by_side(answers.base[i], text) if compare else text, end="\n\n", flush=True)


def _prompts(args: argparse.Namespace) -> list[Prompt]:
    """The prompts of the flags and files, or else of standard input, without the blank ones."""
    prompts = [Prompt(check_argument(text, "--prompt"), f"--prompt {shorten(text, 30)!r}") for text in args.prompt or []]
    for file in args.prompts_file or []:
        prompts += _lines(split_lines(read_text(Path(file).expanduser())), file)
    if not args.prompt and not args.prompts_file:
        if sys.stdin.isatty():
            print("a question on each line, end with Ctrl-D", file=sys.stderr)
        prompts = _lines(read_stdin(), "standard input")
    prompts = [prompt for prompt in prompts if prompt.text.strip()]
    if not prompts:
        raise DataError("there is no prompt; give --prompt TEXT, --prompts-file FILE, or lines on standard input")
    return prompts


def _lines(lines: Sequence[str], name: str) -> list[Prompt]:
    return [Prompt(line, f"{name}:{number}") for number, line in enumerate(lines, start=1)]
