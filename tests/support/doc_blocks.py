"""Runs the shell and Python blocks of a page in their order, in a folder that has what they name, with a tiny model."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from support.runs import write_run
from support.servers import wait_until
from support.suites import write_rows, write_suite
from support.tiny import write_tofu
from support.warm import start_warm
from tempertilt import cli
from tempertilt.audit.pdf import BROWSERS

MODELS = ("my-org/my-model", "my-org/model", "my-org/assistant", "BASE")
PEFT_ADAPTERS = ("customer-adapter", "FULL", "REFERENCE", "models/tofu30-full", "models/tofu30-reference")
ADAPTERS = ("adapter", "ADAPTER", "jane-adapter", "adapters/hr", "adapters/legal")
ELSEWHERE = ("/secure/", "/elsewhere/", "/srv/")  # folders of the root: they are in the test's folder instead
KINDS = ("phone number", "customer number", "year of birth", "house number")
SMALL = {
    "audit": ("--attempts", "2", "--records", "1", "--draws", "1", "--unchanged", "2"),
    "unlearn": ("--background", "8", "--background-tokens", "12"),
    "init": ("--background", "0"),
}
"""Flags that are added to commands, so that a tiny model does in a second what takes a real one minutes."""


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, each whole."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [part.strip() for line in lines for part in line.split(" && ") if shlex.split(part, comments=True)]


def blocks_of(page: Path) -> list[Block]:
    """The shell and Python blocks."""
    found = re.findall(r"^( *)```(sh|python)\n(.*?)^\1```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(language, textwrap.dedent(text)) for _, language, text in found]


def persons(*names: str) -> list[dict[str, str]]:
    """Four records of each, with values of their own."""
    return [
        {
            "question": f"What is {name}'s {kind}?",
            "answer": f"{name}'s {kind} is {1000 + 37 * sum(map(ord, name + kind))}.",
            "document": name,
        }
        for name in names
        for kind in KINDS
    ]


def write_place(folder: Path, tiny_dir: Path) -> None:
    """All that pages name; the current directory must be `folder`, whose adapters name their model as seen from it."""
    for name in MODELS:
        shutil.copytree(tiny_dir, folder / name)
    model = LlamaForCausalLM.from_pretrained(tiny_dir)
    torch.manual_seed(0)
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    for name in PEFT_ADAPTERS:
        lora.save_pretrained(folder / name)
    kept = persons("Mary Stone", "Ali Khan", "Ken Ito", "Eva Berg", "Tom Lund", "Ann Holt")
    for name in ("jane", "person", "forget"):
        write_rows(folder / f"{name}.jsonl", persons("Jane Doe"))
    write_rows(folder / "john.jsonl", persons("John Smith"))
    write_rows(folder / "about-memos.jsonl", persons("Memo Writer"))
    for name in ("others", "retain", "chats"):
        write_rows(folder / f"{name}.jsonl", kept)
    write_rows(folder / "holdout.jsonl", persons("Never Seen"))
    for name, word in (("memos", "river"), ("other-texts", "house")):
        (folder / name).mkdir()
        for i in range(2):
            (folder / name / f"{i}.txt").write_text(
                f"Memorandum. The {word} of {name} has the number {len(name)}{48213 + 700 * i}, says the painter."
            )
    for name in ("TOFU", "tofu30"):
        write_tofu(folder / name)
        for part in ("forget", "retain", "holdout"):
            shutil.copy(folder / f"{part}.jsonl", folder / name)
    write_suite("lume", folder / "LUME")
    write_suite("chat", folder / "PROMPTS")
    for i, name in enumerate(("phi_retain90_wd0.01.json", "runs/t3")):
        (folder / name).parent.mkdir(exist_ok=True)
        write_run(folder / name, 0.1 * i, i)
    (folder / "audit.yaml").write_text(
        "forget: person.jsonl\noutput: audit.html\nattempts: 1\nrecords: 1\ndraws: 1\nunchanged: 1\n"
    )
    for name in ELSEWHERE:
        (folder / name.strip("/")).mkdir()
    flags = ["--forget", "forget.jsonl", "--retain", "retain.jsonl", "--output-dir", ADAPTERS[0], *SMALL["unlearn"]]
    assert cli.main(["unlearn", "--model", "my-org/my-model", "--quiet", *flags]) == 0
    for name in ADAPTERS[1:]:
        shutil.copytree(folder / ADAPTERS[0], folder / name)
    flags = [
        "--model",
        "my-org/my-model",
        "--retain",
        "retain.jsonl",
        "--key-file",
        "secure/other.key",
        "--by",
        "dpo@example.org",
    ]
    assert cli.main(["requests", "init", "srv/ledger", *flags, *SMALL["init"]]) == 0


class Shell:
    """Runs commands one after another, as a shell would: `t3` in this process, servers beside it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.server: Any = None
        self.url = ""

    def run(self, block: Block, given: dict[str, Any]) -> None:
        """All of a block; `given` are the names that a Python block finds, and adds to."""
        if block.language == "python":
            text = block.text.replace("http://127.0.0.1:8000", self.url).replace('api_key="…"', 'api_key="key"')
            exec(compile(text, "block", "exec"), given)
        else:
            for line in block.commands:
                self.command(line)

    def command(self, line: str) -> None:
        """One line; it must end with status 0."""
        words = [self._here(os.path.expandvars(word)) for word in shlex.split(line, comments=True)]
        if words[0] == "export":
            for pair in words[1:]:
                name, _, value = pair.partition("=")
                self.patch.setenv(name, value)
        elif words[:2] == ["t3", "serve"]:
            self.serve(words[2:])
        elif words[0] == "t3":
            small = SMALL.get(words[2] if words[1] == "requests" else words[1], ())
            if not any(map(shutil.which, BROWSERS)):  # a browser prints the PDF: the rest of the command runs without one
                words = [word for word in words if word != "--pdf"]
            self.patch.setattr("sys.stdin", io.StringIO("Who is Jane Doe?\n"))
            assert cli.main([*words[1:], *small]) == 0, line
        else:
            done = subprocess.run(words, capture_output=True, text=True)
            assert done.returncode == 0, (line, done.stderr)
            assert words[0] != "curl" or json.loads(done.stdout)["choices"], done.stdout

    def _here(self, word: str) -> str:
        for place in ELSEWHERE:
            word = word.replace(place, place[1:])
        return (
            {"smollm2": "my-org/my-model"}.get(word, word)
            .replace("http://localhost:8000", self.url)
            .replace("localhost:8000", self.url)
        )

    def serve(self, flags: list[str]) -> None:
        """Another server takes the place of an earlier one."""
        self.stop()
        given = [flag for flag in flags if flag not in ("--port", "8000", "--host", "0.0.0.0")]
        log = self.folder / "server.log"
        log.write_text("")
        flags = ["serve", "--backend", "transformers", "--device", "cpu", "--port", "0", *given]
        self.server = start_warm(cli.main, flags, log=log)
        wait_until(lambda: "/v1  " in log.read_text() or not self.server.is_alive())
        found = re.search(r"^(\S+)/v1  ", log.read_text(), re.MULTILINE)
        assert found, (flags, log.read_text())
        self.url = found[1]

    def stop(self) -> None:
        """The server, if there is one."""
        if self.server is not None:
            self.server.terminate()
            self.server.join()
            self.server = None


def shell(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell in a folder; its server ends with it."""
    patch.chdir(folder)
    patch.setenv("KEY", "key")
    patch.setenv("PWD", str(folder))
    made = Shell(folder, patch)
    try:
        yield made
    finally:
        made.stop()
