"""`t3 audit` from the command line: the files that it writes, its exit status, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.audits import FORGET, HOLDOUT, RETAIN
from tempertilt.cli import main
from tempertilt.data.record import Record


@pytest.fixture()
def command(tmp_path: Path, tiny_dir: Path) -> list[str]:
    def write(name: str, records: list[Record]) -> str:
        rows = [{"question": r.question, "answer": r.answer, "document": r.document} for r in records]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    records = ["--forget", write("forget", FORGET), "--retain", write("retain", RETAIN), "--holdout", write("holdout", HOLDOUT)]
    few = ["--records", "2", "--attempts", "2", "--draws", "1", "--unchanged", "1", "--max-new-tokens", "3"]
    output = ["--output", str(tmp_path / "report.html"), "--device", "cpu", "--quiet"]
    return ["audit", *records, "--model", str(tiny_dir), *few, *output]


def test_a_page_and_figures_are_written(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--asked-by", "A. Person"]) == 0
    printed = capsys.readouterr().out
    figures, text = json.loads((tmp_path / "report.json").read_text()), (tmp_path / "report.html").read_text()
    assert figures["request"]["asked_by"] == "A. Person" and figures["all"]["n"] > 20
    assert f"{figures['all']['n']} attempts" in printed and "spellings" in printed and str(tmp_path / "report.html") in printed
    assert "t3 audit --forget" in figures["request"]["command"] and str(tmp_path / "forget.jsonl") in figures["request"]["files"]
    assert "A. Person" in text and "nothing: no adapter" in text and "memory is unchanged" not in text
    assert not list(tmp_path.glob(".*journal*"))


def test_the_exit_status_goes_by_the_bound(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--fail-above", "0.99"]) == 0
    assert main([*command, "--fail-above", "0.0001"]) == 1
    assert "above --fail-above 0.0001" in capsys.readouterr().err


def test_what_there_was_no_time_for_is_said_and_done_by_the_next_run(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--budget", "0.001s"]) == 0
    assert "not done: spellings (2 attempts: the time was over)" in capsys.readouterr().out
    first = json.loads((tmp_path / "report.json").read_text())
    assert (tmp_path / ".report.journal.jsonl").is_file()
    assert main(command) == 0
    assert json.loads((tmp_path / "report.json").read_text())["all"]["n"] > first["all"]["n"]
    assert not (tmp_path / ".report.journal.jsonl").exists()


def test_another_unfinished_audit_is_replaced_when_told_to(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--budget", "0.001s"]) == 0
    other = [*command, "--seed", "1"]
    assert main(other) == 2
    assert "unfinished run with another model, other data or other options" in capsys.readouterr().err
    assert main([*other, "--overwrite"]) == 0
    assert not (tmp_path / ".report.journal.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "soon"], "the budget is 'soon'"),
        (["--fail-above", "1"], "--fail-above is 1.0; must be"),
        (["--output", "report.json"], "--output is 'report.json'; must be a name that ends with .html"),
        (["--records", "0"], "records is 0; must be"),
        (["--wordings", "nowhere.txt"], "nowhere.txt"),
        (["--letter", "nowhere.txt"], "nowhere.txt"),
        (["--adapter", "nowhere"], "nowhere"),
    ],
)
def test_bad_input(
    command: list[str], options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "report.html").exists()


def test_a_configuration_file_names_the_records_and_the_page(command: list[str], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    page = tmp_path / "other.html"
    config.write_text(f"forget: {tmp_path / 'forget.jsonl'}\nattempts: 1\nasked_by: B. Person\noutput: {page}\n")
    flags = [word for word in command if word not in ("--forget", str(tmp_path / "forget.jsonl"), "--attempts")]
    flags.remove("2")  # of --records
    flags.insert(flags.index("--records") + 1, "1")
    del flags[flags.index("--output") : flags.index("--output") + 2]
    flags.remove("2")  # of --attempts
    assert main([*flags, "--config", str(config)]) == 0
    assert page.is_file()
    request = json.loads(page.with_suffix(".json").read_text())["request"]
    assert request["asked_by"] == "B. Person" and str(tmp_path / "forget.jsonl") in request["files"]


def test_no_browser_is_said_before_the_work(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main([*command, "--pdf"]) == 2
    assert "no browser for --pdf" in capsys.readouterr().err and not (tmp_path / "report.html").exists()


def test_records_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--model", "x"]) == 2
    assert "--forget is needed" in capsys.readouterr().err
