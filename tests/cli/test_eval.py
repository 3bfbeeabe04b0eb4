"""`t3 eval` and `t3 report` from the command line, good input and bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.suites import write_suite
from support.tiny import write_tofu
from tempertilt.cli import main


@pytest.fixture()
def ask(tmp_path: Path, tiny_dir: Path) -> list[str]:
    data = write_tofu(tmp_path / "data")
    fast = ["--max-new-tokens", "4", "--limit", "3", "--device", "cpu", "--quiet"]
    return ["eval", "--suite", "tofu", "--model", str(tiny_dir), "--data-dir", str(data), *fast]


def test_measure_compare_report(ask: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, out = tmp_path / "reference", tmp_path / "out"
    assert main([*ask, "--output-dir", str(reference)]) == 0
    text = capsys.readouterr().out
    assert "model_utility" in text and "t3 finetune" in text, "without a reference it says how to make one"
    assert main([*ask, "--output-dir", str(out), "--reference", str(reference), "--system-prompt", "Answer.", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert 0 < content["metrics"]["forget_quality"]["value"] <= 1 and not content["reused"]
    assert "system_prompt: Answer." in (out / "config.yaml").read_text()
    assert main(["report", str(reference), str(out), "--output", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    config = tmp_path / "c.yaml"
    config.write_text("draws: 2\nsystem_prompt: B\n")
    assert main([*ask, "--output-dir", str(out), "--config", str(config)]) == 2
    assert "replace them with --overwrite" in capsys.readouterr().err
    assert main([*ask, "--output-dir", str(out), "--config", str(config), "--overwrite"]) == 0
    assert "draws: 2" in (out / "config.yaml").read_text() and "system_prompt: B" in (out / "config.yaml").read_text()


def test_a_reference_model_beside_it(ask: list[str], tmp_path: Path, tiny_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    asked = [*ask, "--output-dir", str(out), "--draws", "4", "--reference-model", str(tiny_dir)]
    assert main([*asked, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["metrics"]["reference_kl"]["value"] == 0 and content["metrics"]["reference_same_top"]["value"] == 1
    assert f"reference_model: {tiny_dir}" in (out / "config.yaml").read_text()
    assert main([*asked, "--reference", str(out)]) == 0
    text = capsys.readouterr().out
    assert "leak@k by k: 1: 0.0000, 2: 0.0000, 4: 0.0000; at k = 4 at most" in text
    assert "forget_reference_perplexity: 1.00 times that of the reference's own answers" in text
    adapter_alone = [option for option in ask if option not in ("--model", str(tiny_dir))]
    with_adapter = [*adapter_alone, "--output-dir", str(out), "--adapter", "none", "--reference-peft-adapter", "none"]
    assert main(with_adapter) == 2
    assert "name it with --reference-model" in capsys.readouterr().err


def test_other_suites(tmp_path: Path, tiny_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_suite("lume", tmp_path / "lume"), tmp_path / "out"
    ask = ["eval", "--model", str(tiny_dir), "--device", "cpu", "--quiet", "--output-dir", str(out), "--limit", "2"]
    asked = [*ask, "--data-dir", str(data), "--max-new-tokens", "3"]
    assert main([*asked, "--suite", "lume", "--lume-task", "Task2", "--prompt-format", "chat", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["metrics"]["forget_Task2_regurgitation"]["n"] == 1
    assert json.loads((out / "results.json").read_text())["suite"] == "lume"
    config = tmp_path / "c.yaml"
    config.write_text("suite: chat\n")
    data, out = write_suite("chat", tmp_path / "chat"), tmp_path / "chat-out"
    ask[ask.index("--output-dir") + 1] = str(out)
    assert main([*ask, "--data-dir", str(data), "--config", str(config)]) == 0
    assert "chat_ended" in capsys.readouterr().out
    text = (out / "config.yaml").read_text()
    assert "suite: chat" in text and "max_new_tokens: 64" in text, "the suite's own default"
    for options, message in (
        (["--suite", "lume", "--split", "forget01"], "--split is an option of --suite tofu, not of lume"),
        (["--suite", "mmlu", "--lume-task", "Task1"], "--lume-task is an option of --suite lume, not of mmlu"),
    ):
        assert main([*ask, *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "forget20"], "must be one of forget01, forget05, forget10"),
        (["--limit", "0"], "limit is 0"),
        (["--draws", "-1"], "draws is -1"),
        (["--data-dir", "nowhere/at/all"], "no directory 'nowhere/at/all'"),
        (["--reference", "nothing.json"], "no results at 'nothing.json'"),
        (["--model", "./none"], "./none"),
        (["--output-dir", "/proc/x"], "/proc/x"),
    ],
)
def test_bad_input(ask: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert main([*ask, "--output-dir", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list((tmp_path / "out").glob("*.json*"))


def test_what_is_needed_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["eval", "--suite", "tofu"]) == 2
    assert "--output-dir is needed" in capsys.readouterr().err
    data = write_tofu(tmp_path / "data")
    assert main(["eval", "--data-dir", str(data), "--output-dir", str(tmp_path / "out")]) == 2
    assert "--adapter or --model is needed" in capsys.readouterr().err
