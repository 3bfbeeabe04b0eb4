"""What MkDocs does with these pages: the parser writes the command line's reference, links out of docs become plain text."""

from __future__ import annotations

import argparse
import posixpath
import re
from typing import Any

from tempertilt import cli
from tempertilt.cli.flags import show_all

COMMANDS = "<!-- commands -->"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page as it goes on to the renderer."""
    folder = posixpath.dirname(page.file.src_uri)

    def inside(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        if not target.startswith(".."):
            return match[0]
        text, path = match[1], target.lstrip("./")
        return text if text.strip("`") == path or "`" in text else f"{text} (`{path}` in the repository)"

    return LINK.sub(inside, markdown.replace(COMMANDS, commands()) if COMMANDS in markdown else markdown)


def commands() -> str:
    """Every verb's help as Markdown."""
    parts = []
    for verb, about in cli.VERBS.items():
        parser = argparse.ArgumentParser(prog=f"t3 {verb}", formatter_class=lambda prog: argparse.HelpFormatter(prog, width=110))
        cli.fill_parser(parser, verb)
        show_all(parser)
        parts.append(f"## t3 {verb}\n\n{about[0].upper()}{about[1:]}.\n\n```text\n{parser.format_help()}```\n")
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for one in action.choices.values():
                    show_all(one)
                parts += [f"### t3 {verb} {name}\n\n```text\n{one.format_help()}```\n" for name, one in action.choices.items()]
    return "\n".join(parts)
