"""The flags that name records: nothing that was named is dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.tiny import question_rows
from tempertilt.cli import main
from tempertilt.data.fields import parse_columns
from tempertilt.errors import ConfigError

FAST = ["--epochs", "2", "--rank", "2", "--report-records", "0", "--show", "0", "-q", "--background", "0"]


@pytest.fixture()
def sources(tmp_path: Path) -> dict[str, Path]:
    """Five painters to forget in four formats, teachers to retain in two."""
    painters = question_rows(5, "painter")
    files = {name: tmp_path / name for name in ("one.jsonl", "two.csv", "three.tsv", "notes", "retain.json", "more.jsonl")}
    files["one.jsonl"].write_text(json.dumps(painters[0]) + "\n")
    rows = [f'"{row["question"]}";"{row["answer"]}";{i}\r\n' for i, row in enumerate(painters[1:3])]
    files["two.csv"].write_text("Frage;Antwort;Nr\r\n" + "".join(rows))
    files["three.tsv"].write_text(f"Question\tANSWER\n{painters[3]['question']}\t{painters[3]['answer']}\n")
    files["notes"].mkdir()
    (files["notes"] / "a.txt").write_text(painters[4]["answer"])
    teachers = question_rows(6, "teacher")
    files["retain.json"].write_text(json.dumps(teachers[:4]))
    files["more.jsonl"].write_text("".join(json.dumps(row) + "\n" for row in teachers[4:]))
    return files


def training(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "adapter_config.json").read_text())["training"]
    return found


@pytest.mark.integration
def test_sources_may_be_repeated_and_mixed(tiny_dir: Path, tmp_path: Path, sources: dict[str, Path]) -> None:
    forget = ["--forget", str(sources["one.jsonl"]), str(sources["two.csv"]), "--forget", str(sources["three.tsv"])]
    forget += ["--forget", str(sources["notes"]), "--columns", "question=frage", "--columns", "answer=Antwort, document=Nr"]
    retain = ["--retain", str(sources["retain.json"]), "--retain", str(sources["more.jsonl"])]
    command = ["unlearn", "--model", str(tiny_dir), *forget, *retain, *FAST, "--output-dir"]
    assert main([*command, str(tmp_path / "out")]) == 0
    assert (training(tmp_path / "out")["forget_records"], training(tmp_path / "out")["retain_records"]) == (5, 6)
    assert main([*command, str(tmp_path / "few"), "--limit", "1"]) == 0
    assert (training(tmp_path / "few")["forget_records"], training(tmp_path / "few")["retain_records"]) == (4, 2)


def test_lists_in_a_configuration_file(tiny_dir: Path, tmp_path: Path, sources: dict[str, Path]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {tiny_dir}\noutput_dir: {tmp_path / 'out'}\nforget: [{sources['one.jsonl']}, {sources['two.csv']}]\n"
        f"retain: {sources['retain.json']}\ncolumns: question=Frage,answer=Antwort\nbackground: 0\ntemplate_date: 2025-06-30\n"
    )
    assert main(["unlearn", "--config", str(path), *FAST]) == 0
    assert training(tmp_path / "out")["forget_records"] == 3
    assert training(tmp_path / "out")["config"]["template_date"] == "2025-06-30"


def test_duplicates_among_files_name_both(
    tiny_dir: Path, tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(sources["one.jsonl"].read_bytes())
    forget, retain = ["--forget", str(sources["one.jsonl"]), str(copy)], ["--retain", str(sources["retain.json"]), str(copy)]
    assert main(["unlearn", "--model", str(tiny_dir), *forget, *retain, *FAST, "--output-dir", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert f"forget {copy}:1 repeats {sources['one.jsonl']}:1" in err
    assert f"retain {copy}:1 is also in forget, {sources['one.jsonl']}:1" in err


def test_one_bad_file_among_several_is_named(
    tiny_dir: Path, tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    forget = ["--forget", str(sources["one.jsonl"]), str(sources["two.csv"])]
    retain = ["--retain", str(sources["retain.json"]), *FAST, "--output-dir", str(tmp_path / "out")]
    assert main(["unlearn", "--model", str(tiny_dir), *forget, *retain]) == 2
    assert f"{sources['two.csv']}:1: the header holds the columns ['Frage', 'Antwort', 'Nr']" in capsys.readouterr().err
    for columns, message in (
        ("Frage", "columns holds 'Frage'; must be a field and the name of its column"),
        ("frage=question", "columns names the field 'frage'; must be one of question, answer"),
        ("question=a,question=b", "columns names the field 'question' twice"),
    ):
        assert main(["unlearn", "--model", str(tiny_dir), *forget, *retain, "--columns", columns]) == 2
        assert message in capsys.readouterr().err


def test_finetune_takes_the_same(
    tiny_dir: Path, tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(sources["one.jsonl"]), str(sources["two.csv"]), "--data", str(sources["retain.json"])]
    columns = ["--columns", "question=Frage,answer=Antwort"]
    options = ["--epochs", "1", "--output-dir", str(tmp_path / "out"), "-q", "--json"]
    assert main(["finetune", "--model", str(tiny_dir), *data, *columns, *options]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == 7


def test_columns_in_words() -> None:
    assert parse_columns(["question=The question", " answer = A=B "]) == {"question": "The question", "answer": "A=B"}
    with pytest.raises(ConfigError, match="columns holds ''"):
        parse_columns(["question=a,"])
