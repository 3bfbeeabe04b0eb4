"""README and docs: the commands parse, and flags, modules, files, names and links exist."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tempertilt import cli
from tempertilt.fitting.pipeline import METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
    *sorted((ROOT / "benchmarks").glob("**/README.md")),
    *sorted(path for path in (ROOT / "benchmarks" / "experiments").glob("*.md") if path.name != "README.md"),
]
OTHER_PROGRAMS = {
    "--cpu", "--multi_gpu", "--use_fsdp", "--num_processes", "--num_machines", "--no_python", "--config_file",  # accelerate
    "--max-restarts", "--num-gpus",  # torchrun, ray
    "--logprobs-mode", "--logits-processors", "--model_args",  # vllm, lm_eval
}  # fmt: skip
PLACEHOLDERS = {"...", "…"}
BENCHMARKS = sorted((ROOT / "benchmarks").glob("**/*.py"))


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parser_of(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"t3 {verb}", allow_abbrev=False)
    cli.fill_parser(parser, verb)
    return parser


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The flags of a verb, and of its actions."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions_of(inner)


@cache
def known_flags() -> set[str]:
    return {flag for verb in cli.VERBS for action in actions_of(parser_of(verb)) for flag in action.option_strings}


def shell_blocks(text: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def inline_code(text: str) -> list[str]:
    prose = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `t3` command after `t3`, in shell blocks and in inline code; of alternatives `a|b` the first."""
    lines = [line for block in shell_blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += [re.sub(r"[][]", "", code) for code in inline_code(text) if code.startswith("t3 ")]
    for line in lines:
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            starts = [i for i, word in enumerate(words) if word == "t3" and (i == 0 or not words[i - 1].startswith("--model"))]
            if starts:
                yield [word.split("|")[0] for word in words[starts[0] + 1 :] if word not in PLACEHOLDERS]


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_command_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(path.read_text(encoding="utf-8")):
        if not words or words == ["VERB"]:
            continue
        verb, *rest = words
        assert verb in cli.VERBS, f"t3 {verb}"
        if not rest or {"--help", "--help-all"} & set(rest):
            continue
        if len(rest) == 1 and rest[0] in getattr(cli._module(verb), "ACTIONS", ()):  # an action is named
            continue
        if len(rest) == 1 and rest[0].startswith("--"):  # a flag is named, without its value
            assert rest[0] in parser_of(verb)._option_string_actions, words
            continue
        try:
            parser_of(verb).parse_args(rest)
        except SystemExit:
            pytest.fail(f"{' '.join(['t3', *words])}: {capsys.readouterr().err.splitlines()[-1]}")


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_flag_exists(path: Path) -> None:
    scripts = {script.name: script.read_text(encoding="utf-8") for script in BENCHMARKS}
    text = path.read_text(encoding="utf-8")
    known = known_flags() | OTHER_PROGRAMS
    for name in {"_tofu.py", *re.findall(r"\w+\.py", text)}:  # scripts that the page names; _tofu.py has the experiments' flags
        known = known | set(re.findall(r'"(--[\w-]+)"', scripts.get(name, "")))
    for code in inline_code(text):
        named = set(re.findall(r"(?<!\S)--[\w-]+", code))
        assert named <= known, f"{code}: {sorted(named - known)}"


def heading_anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_link_leads_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = path if not name else path.parent / name
        assert file.exists(), target
        assert not anchor or anchor in heading_anchors(file.resolve()), target


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_module_and_file_exists(path: Path) -> None:
    folders = (ROOT, ROOT / "src" / "tempertilt", path.parent, ROOT / "benchmarks")
    text = path.read_text(encoding="utf-8")
    words = {word.rstrip(".,:;") for code in inline_code(text) for word in code.split()}
    words |= {word for block in shell_blocks(text) for word in re.findall(r"\S+\.py\b", block)}
    for word in words:
        if re.fullmatch(r"[\w/.-]+\.(py|yaml)", word) and not word.endswith(("config.yaml", "my.yaml")):
            assert any((folder / word).is_file() for folder in folders), word
        elif re.fullmatch(r"(src|tests|benchmarks|docs|examples|tempertilt)/[\w/.-]*[\w/]", word):
            assert any((folder / word).exists() for folder in (ROOT, ROOT / "src")), word
        elif re.fullmatch(r"tempertilt(\.\w+)+", word):
            assert importable(word), word


def test_the_page_of_the_method_has_the_defaults_of_both() -> None:
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    ours, papers = (METHODS[name].recipe() for name in ("t3", "t3-paper"))
    rows = re.findall(r"^\| `--([\w-]+)`[^|]*\| ([\w.]+) \| ([\w.]+) \|$", text, re.MULTILINE)
    shown = {name.replace("-", "_"): given for name, *given in rows}
    assert {name for name in ours if ours[name] != papers[name]} <= set(shown)
    for name, given in shown.items():
        assert given == [_shown(recipe[name]) for recipe in (ours, papers)], name
    assert f"{ours['match_steps']} steps of {ours['match_batch_size']:,} contexts" in text


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_example_configuration_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "examples" / "unlearn.yaml")
    assert cli.main(["unlearn", "--config", config, "--output-dir", str(tmp_path / "adapter")]) == 2
    assert "forget.jsonl" in capsys.readouterr().err  # all options are known; the records are not there


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_import_of_an_example_works(path: Path) -> None:
    for block in re.findall(r"^ *```python\n(.*?)^ *```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        for node in ast.walk(ast.parse(textwrap.dedent(block))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tempertilt"):
                for alias in node.names:
                    assert importable(f"{node.module}.{alias.name}"), f"{node.module}.{alias.name}"


def importable(name: str) -> bool:
    """Whether a dotted name is a module, or a member of one."""
    try:
        importlib.import_module(name)
        return True
    except ModuleNotFoundError:
        parent, _, member = name.rpartition(".")
        return hasattr(importlib.import_module(parent), member)


def test_the_readme_shows_what_the_demonstration_said() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text(encoding="utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    asked = {f"asked {form['name']}": form["shown"] for form in result["forgotten"]}
    asked |= {kept["name"]: kept["shown"] for kept in result["kept"]}
    shown = re.findall(r"^\[(.*)\] (.*)\n  before  (.*)\n  after   (.*)$", text, re.MULTILINE)
    assert shown and all(tuple(asked[name].values()) == tuple(rest) for name, *rest in shown)
    counts = [
        sum(item[name] for item in result[part])
        for part, *names in (("forgotten", "n", "before", "after"), ("kept", "n", "same"))
        for name in names
    ]
    n, before, after, total, same = counts
    assert f"{before} of {n} answers about {result['person']} gave a fact away before, {after} after." in text
    assert f"{same} of {total} other answers are unchanged." in text


@pytest.mark.parametrize("suite", ["tofu", "lume", "others"])
def test_the_page_of_evidence_has_the_tables_of_its_script(suite: str) -> None:
    run = subprocess.run([sys.executable, ROOT / "benchmarks" / "evidence.py", suite], capture_output=True, text=True, check=True)
    assert run.stdout.strip() in (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", ["said", "forms", "later", "silence"])
def test_the_page_of_the_second_version_has_the_tables_of_its_script(table: str) -> None:
    run = subprocess.run([sys.executable, ROOT / "benchmarks" / "evidence.py", table], capture_output=True, text=True, check=True)
    page = (ROOT / "benchmarks" / "results" / "second_version.md").read_text(encoding="utf-8")
    assert run.stdout.count("\n") > 9 and run.stdout.strip() in page


def test_the_page_of_evidence_has_the_table_of_rivals() -> None:
    script, folder = ROOT / "benchmarks" / "rivals_hearing.py", ROOT / "benchmarks" / "results" / "rivals_hearing"
    run = subprocess.run([sys.executable, script, "--output-dir", folder], capture_output=True, text=True, check=True)
    assert run.stdout.count("\n") > 5 and run.stdout.strip() in (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
