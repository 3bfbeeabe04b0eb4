"""The command line: bad input gets one clear message and status 2, and nothing half-written stays."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.tiny import make_llama, question_rows
from tempertilt.cli import VERBS, main

FAST = ["--epochs", "3", "--rank", "3", "--report-records", "2", "--show", "1", "--max-new-tokens", "4", "--quiet"]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture()
def request_files(tmp_path: Path, tiny_dir: Path) -> dict[str, str]:
    return {
        "model": str(tiny_dir),
        "forget": str(write_jsonl(tmp_path / "forget.jsonl", question_rows(8, "painter"))),
        "retain": str(write_jsonl(tmp_path / "retain.jsonl", question_rows(8, "teacher"))),
        "output-dir": str(tmp_path / "out"),
    }


def flags(options: dict[str, str]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", value)]


@pytest.mark.integration
def test_unlearn_generate_and_chat(
    request_files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["unlearn", *flags(request_files), *FAST]) == 0
    out = capsys.readouterr().out
    assert "[forget] What did painter" in out and "greedy recall" in out and "still hold the knowledge" in out

    assert (
        main(
            [
                "generate",
                "--adapter",
                request_files["output-dir"],
                "--prompt",
                "Who?",
                "--json",
                "--compare",
                "--max-new-tokens",
                "4",
            ]
        )
        == 0
    )
    [row] = json.loads(capsys.readouterr().out)
    assert row["prompt"] == "Who?" and len(row["answers"]) == 1 and len(row["base_answers"]) == 1

    sampling = ["--do-sample", "--num-return-sequences", "2", "--top-k", "5", "--seed", "3"]
    runs = []
    for _ in range(2):
        assert main(["generate", "--adapter", request_files["output-dir"], "--prompt", "Who?", "--json", *sampling]) == 0
        runs.append(json.loads(capsys.readouterr().out)[0]["answers"])
    assert len(runs[0]) == 2 and runs[0] == runs[1]

    monkeypatch.setattr(sys, "stdin", io.StringIO("Who?\n/compare\nWhere?\n/reset\n/what\n/quit\nnever read\n"))
    assert main(["chat", "--adapter", request_files["output-dir"], "--max-new-tokens", "4"]) == 0
    captured = capsys.readouterr()
    assert "base" in captured.out and "unlearned" in captured.out and "compare is on" in captured.err


def test_generate_from_a_plain_model_and_raw_text(request_files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "generate",
                "--model",
                request_files["model"],
                "--prompt",
                "The sea",
                "--raw",
                "--max-new-tokens",
                "3",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)[0]["answers"]


def test_a_configuration_file_and_flags_over_it(
    request_files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    lines = [f"{name.replace('-', '_')}: {value}" for name, value in request_files.items()]
    config.write_text("\n".join([*lines, "rank: 7", "learning_rate: 1e-3", "epochs: 2", "early_stopping: true"]))
    assert (
        main(
            [
                "unlearn",
                "--config",
                str(config),
                "--rank",
                "5",
                "--json",
                "--show",
                "0",
                "--report-records",
                "0",
                "--quiet",
            ]
        )
        == 0
    )
    capsys.readouterr()
    recipe = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["training"]["config"]
    assert recipe["rank"] == 5 and recipe["learning_rate"] == 1e-3 and recipe["early_stopping"] is True


Edit = Callable[[dict[str, str], Path], object]


def replace_file(name: str, content: bytes) -> Edit:
    return lambda options, _tmp: Path(options[name]).write_bytes(content)


def set_option(name: str, value: str) -> Edit:
    return lambda options, tmp: options.__setitem__(name, value.replace("TMP", str(tmp)))


def second_row(row: dict[str, Any]) -> bytes:
    return (json.dumps(question_rows(1, "painter")[0]) + "\n" + json.dumps(row) + "\n").encode()


def copy_forget_into_retain(options: dict[str, str], _tmp: Path) -> None:
    rows = question_rows(8, "teacher") + question_rows(3, "painter")[2:]
    write_jsonl(Path(options["retain"]), rows)


def broken_model(options: dict[str, str], tmp: Path) -> None:
    shutil.copytree(options["model"], tmp / "broken")
    weights = tmp / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    options["model"] = str(tmp / "broken")


BAD: list[tuple[str, Edit, list[str]]] = [
    ("missing file", set_option("forget", "TMP/none.jsonl"), ["none.jsonl"]),
    ("empty file", replace_file("forget", b""), ["forget.jsonl"]),
    ("wrong field", replace_file("forget", second_row({"query": "a", "answer": "b"})), ["forget.jsonl:2", "question"]),
    (
        "empty answer",
        replace_file("forget", second_row({"question": "a", "answer": " "})),
        ["forget.jsonl:2", "answer"],
    ),
    ("not an object", replace_file("forget", second_row([1])), ["forget.jsonl:2"]),  # type: ignore[arg-type]
    ("broken JSON", replace_file("retain", b'{"question": "a", \n'), ["retain.jsonl:1", "column"]),
    ("not UTF-8", replace_file("retain", b'{"question": "a\xff", "answer": "b"}\n'), ["retain.jsonl", "UTF-8"]),
    ("forget in retain", copy_forget_into_retain, ["forget.jsonl:3", "retain.jsonl:9", "--drop-overlap"]),
    ("unknown model", set_option("model", "TMP/no-model"), ["no-model", "smollm2"]),
    ("unknown hub id", set_option("model", "no-such-org/no-such-model"), ["no-such-org/no-such-model"]),
    ("damaged model", broken_model, ["broken"]),
    ("no PEFT adapter", set_option("peft-adapter", "TMP"), ["adapter_config.json"]),
    ("output is a file", set_option("output-dir", "TMP/forget.jsonl"), ["forget.jsonl", "file"]),
    ("unwritable directory", set_option("output-dir", "/proc/none/out"), ["/proc/none/out", "cannot write"]),
    ("below a file", set_option("output-dir", "TMP/forget.jsonl/out"), ["forget.jsonl/out", "cannot write"]),
    ("bad option", set_option("temperature", "0"), ["temperature is 0", ">= 0.001"]),
    ("bad option", set_option("limit", "0"), ["--limit is 0"]),
    ("bad device", set_option("device", "abacus"), ["abacus", "cpu"]),
    ("bad dtype", set_option("dtype", "int7"), ["int7", "bfloat16"]),
    ("missing configuration", set_option("config", "TMP/none.yaml"), ["none.yaml"]),
]


@pytest.mark.parametrize(("edit", "expected"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_has_one_message_and_leaves_nothing(
    request_files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    edit: Edit,
    expected: list[str],
) -> None:
    edit(request_files, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert main(["unlearn", *flags(request_files), *FAST]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    messages = [line for line in captured.err.splitlines() if "error:" in line]
    assert len(messages) == 1 and messages[0].startswith("t3 unlearn: error:")
    assert "Traceback" not in captured.err
    for text in expected:
        assert text in captured.err
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


def test_an_adapter_for_another_base_or_a_damaged_one(
    request_files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["unlearn", *flags(request_files), *FAST]) == 0
    other = tmp_path / "other"
    shutil.copytree(request_files["model"], other)
    make_llama(seed=9).save_pretrained(other)
    ask = ["generate", "--adapter", request_files["output-dir"], "--prompt", "Who?", "--max-new-tokens", "2"]
    assert main([*ask, "--model", str(other)]) == 2
    assert "was fitted on" in capsys.readouterr().err
    assert main([*ask, "--model", str(other), "--ignore-base-mismatch"]) == 0
    weights = tmp_path / "out" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    capsys.readouterr()
    assert main(ask) == 2
    assert "damaged or truncated" in capsys.readouterr().err
    assert main(["generate", "--adapter", str(tmp_path / "none"), "--prompt", "Who?"]) == 2
    assert main(["generate", "--model", str(other), "--prompts-file", str(tmp_path / "none")]) == 2
    assert main(["generate", "--prompt", "Who?"]) == 2
    assert "--adapter or --model is needed" in capsys.readouterr().err


def test_dropping_the_overlap_is_said(
    request_files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    copy_forget_into_retain(request_files, tmp_path)
    assert main(["unlearn", *flags(request_files), *FAST, "--drop-overlap"]) == 0
    assert "dropped" in caplog.text


@pytest.mark.parametrize("values", ["[1]", "colour: red", "rank: many", "a: ["])
def test_bad_configuration_files(values: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model: a/b\nforget: f\nretain: r\noutput_dir: o\n{values}\n" if values[0] not in "[" else values)
    (tmp_path / "f").write_text("")
    assert main(["unlearn", "--config", str(path)]) == 2
    assert "run.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["methods", "metrics", "suites", "models"])
def test_list_prints_a_json_array(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert isinstance(entries, list) and all({"name", "description"} <= set(entry) for entry in entries)
    assert main(["list", kind]) == 0


def test_list_without_a_kind_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert {entry["kind"] for entry in entries} == {"attacks", "methods", "metrics", "suites", "models"}
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {entry['name']} " in out for entry in entries) and "\nmetrics\n" in out


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["packages"]["torch"]
    assert main(["env"]) == 0
    assert "transformers" in capsys.readouterr().out


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0 and verb in capsys.readouterr().out


def test_the_help_of_unlearn_is_short(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    flags = {}
    for kind in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            main(["unlearn", kind])
        flags[kind] = set(re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.MULTILINE))
    assert {"--forget", "--retain", "--model", "--output-dir", "--reply"} < flags["--help"] < flags["--help-all"]
    assert len(flags["--help"]) <= 16 and {"--temperature", "--variants", "--dtype"} <= flags["--help-all"]


def test_help_shows_the_defaults_of_both_methods(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        main(["unlearn", "--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    for flag, default in (
        ("--temperature FLOAT", "(default: 1.0; with t3-paper: 2.5)"),
        ("--objective {classify,match}", "(default: match; with t3-paper: classify)"),
        ("--gate, --no-gate", "(default: True; with t3-paper: False)"),
        ("--epochs INT", "(default: 100)"),
        ("--show INT", "(default: 3)"),
    ):
        assert re.search(rf"{re.escape(flag)} [^-].*?\(default: [^)]*\)", text)[0].endswith(default), flag  # type: ignore[index]


def test_help_imports_no_heavy_package() -> None:
    code = """
import sys
from tempertilt.cli import main
try:
    main(["--help"])
except SystemExit:
    print([name for name in ("torch", "transformers", "numpy") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("[]")


def test_an_unknown_verb_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["forget"])
    assert stop.value.code == 2 and "unlearn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (OSError(28, "No space left on device", "a/b.log"), "t3 env: error: 'a/b.log': No space left on device\n"),
        (OSError(28, "No space left on device"), "t3 env: error: No space left on device\n"),
        (ConnectionError("no route\nto the hub"), "t3 env: error: no route to the hub\n"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    fault: OSError, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(_: object) -> int:
        raise fault

    monkeypatch.setattr("tempertilt.cli.env.run", refused)
    assert main(["env"]) == 2
    assert capsys.readouterr().err == message
    with pytest.raises(type(fault)):
        main(["env", "--debug"])
