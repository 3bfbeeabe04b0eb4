"""The command `t3`: one module for each verb, imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

import tempertilt
from tempertilt.cli.flags import advanced, finish_flags
from tempertilt.cli.streams import never_fail_on_output
from tempertilt.errors import TemperTiltError

VERBS = {
    "unlearn": "make an adapter from records to forget and records to retain",
    "requests": "keep a ledger of removal requests: add, revoke, renew, verify",
    "generate": "answer prompts with an unlearned model",
    "chat": "talk to an unlearned model",
    "serve": "serve unlearned models over HTTP, with OpenAI's interface",
    "playground": "see in the browser, token by token, what an unlearned model does",
    "finetune": "make a model know a corpus (LoRA)",
    "eval": "measure a model on a benchmark",
    "bench": "compare unlearning methods on one model, data set and budget",
    "audit": "attack an unlearned model, and write the evidence as a page",
    "report": "write finished runs as one HTML page, or as tables",
    "theory": "experiments that show what is guaranteed, and why tempering is needed",
    "demo": "see a small model forget, offline, in a few minutes",
    "list": "list attacks, methods, metrics, suites or models",
    "env": "show versions and machine, for bug reports",
}
MODULES = {"list": "listing"}  # where a module named as its verb would hide a built-in


def main(argv: Sequence[str] | None = None) -> int:
    """Run `t3`; return the exit status: 0, or 2 for a mistake that the user can fix (one message on stderr)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "15")  # a line now and then, in a log; read when tqdm is imported
    parser = argparse.ArgumentParser(
        prog="t3",
        description="Temper-Then-Tilt unlearning: make a language model stop saying what it must no longer say.",
        epilog="The frozen weights still hold the knowledge: t3 unlearns what a served model says, not what its weights contain.",
    )
    parser.add_argument("--version", action="version", version=f"tempertilt {tempertilt.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = argv[0] if argv and argv[0] in VERBS else None
    for name, text in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text)
        if name == chosen:
            fill_parser(verb, name, argv[1:2])
    args = parser.parse_args(argv)
    args.words = argv[1:]
    never_fail_on_output()
    _quieten(args.verbose)
    if args.verb not in ("list", "env", "theory") and getattr(args, "action", None) in (None, "init", "add"):
        _quieten_loading()
    try:
        return int(_module(args.verb).run(args))
    except TemperTiltError as error:
        if args.debug:
            raise
        print(f"t3 {args.verb}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"t3 {args.verb}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if args.debug:
            raise
        print(f"t3 {args.verb}: error: {_system_error(error)}", file=sys.stderr)
        return 2


def fill_parser(parser: argparse.ArgumentParser, verb: str, following: Sequence[str] | None = None) -> None:
    """Give a verb's parser its flags. Those of a verb's action are added if it is called: some take seconds to import.

    Args:
        following: words after the verb, the action among them; None = the flags of all actions.
    """
    module = _module(verb)
    leaves = {parser: module.add_arguments} if hasattr(module, "add_arguments") else {}
    if not leaves:
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        for name, action in module.ACTIONS.items():
            leaf = actions.add_parser(name, help=action.help, description=action.help)
            if following is None or name in following:
                leaves[leaf] = action.add_arguments
    for leaf, add_arguments in leaves.items():
        add_arguments(leaf)
        _add_common(leaf)
        finish_flags(leaf)


def _system_error(error: OSError) -> str:
    """What the system refused, in one line, and for which file."""
    place = f"{str(error.filename)!r}: " if error.filename is not None else ""
    return place + (error.strerror or " ".join(str(error).split()) or type(error).__name__)


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"tempertilt.cli.{MODULES.get(verb, verb)}")


def _add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("common")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress bars")
    group.add_argument("--verbose", "-v", action="store_true", help="more about what is being done, on stderr")
    advanced(group.add_argument("--debug", action="store_true", help="show a traceback where there is an error"))


def _quieten(verbose: bool) -> None:
    """Our messages on stderr; those of libraries only if they are warnings of their own that a user can act on."""
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module="transformers|torch|peft")
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.ERROR)
    logging.getLogger("tempertilt").setLevel(logging.INFO if verbose else logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def _quieten_loading() -> None:
    """No bars for reading weights from disk, which take a moment; downloads and conversions show theirs."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
