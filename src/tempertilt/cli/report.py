"""`t3 report`: finished runs as one HTML page, or as tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tempertilt.report.html import to_html
from tempertilt.report.runs import compare
from tempertilt.report.tables import to_json, to_latex, to_markdown
from tempertilt.storage import make_dir, write_text

FORMATS = {"html": to_html, "md": to_markdown, "tex": to_latex, "json": to_json}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of t3 eval; the first of several is the model before")
    parser.add_argument("--reference", metavar="RUN", help="results of a model that never saw the forget set (default: as run)")
    parser.add_argument("--target", metavar="RUN", help="run folder of the model before unlearning (default: the first RUN)")
    parser.add_argument("--format", choices=list(FORMATS), default="html", help="what to write (default: html)")
    parser.add_argument("--output", metavar="FILE", help="file to write, - for stdout (default: report.FORMAT in the last RUN)")


def run(args: argparse.Namespace) -> int:
    """Write the report."""
    text = FORMATS[args.format](compare(args.runs, args.reference, args.target))
    if args.output == "-":
        sys.stdout.write(text)
        return 0
    path = Path(args.output) if args.output else Path(args.runs[-1]) / f"report.{args.format}"
    make_dir(path.parent)
    write_text(path, text)
    print(path)
    return 0
