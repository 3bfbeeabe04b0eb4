"""The user's own files, good ones and bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tempertilt.audit.texts import read_prompts, read_translations, read_wordings
from tempertilt.errors import DataError


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_wordings(tmp_path: Path) -> None:
    assert read_wordings(None) == []
    assert read_wordings(written(tmp_path / "a", "Say {name}\n\n{question}\n")) == ["Say {name}", "{question}"]
    with pytest.raises(DataError, match=r"a:2: the prompt has neither \{question\} nor \{name\}"):
        read_wordings(written(tmp_path / "a", "{name}\nSay it\n"))


def test_translations(tmp_path: Path) -> None:
    assert read_translations(None, 3) == {}
    good = written(tmp_path / "t", '{"record": 2, "language": "French", "question": "Qui ?"}\n')
    assert read_translations(good, 3) == {2: {"French": "Qui ?"}}
    for bad in ('{"record": 4, "language": "French", "question": "Qui ?"}', '{"record": 1, "language": "French"}', "[1]", "{"):
        with pytest.raises(DataError, match=r"t:1: not a translated question; must be an object with record \(1 to 3\)"):
            read_translations(written(tmp_path / "t", bad + "\n"), 3)

    with pytest.raises(DataError, match=r"t:2: record 2 has a question in French already"):
        read_translations(written(tmp_path / "t", 2 * '{"record": 2, "language": "French", "question": "Qui ?"}\n'), 3)


def test_prompts(tmp_path: Path) -> None:
    lines = written(tmp_path / "lines.txt", "Hello?\n\nWho are you?\n")
    rows = written(tmp_path / "rows.jsonl", '{"turns": ["One?", "Two?"]}\n{"question": "Q?", "choices": ["x", "y"]}\n{"id": 1}\n')
    table = written(tmp_path / "table.csv", 'id,prompt\n1,"How, then?"\n')
    assert read_prompts([lines, rows, table]) == {
        "lines": ["Hello?", "Who are you?"],
        "rows": ["One?", "Q?\nA. x\nB. y"],
        "table": ["How, then?"],
    }
    with pytest.raises(DataError, match="no prompts; must be lines of text"):
        read_prompts([written(tmp_path / "none.jsonl", '{"id": 1}\n')])
    with pytest.raises(DataError, match=r"bad\.jsonl:2: not JSON"):
        read_prompts([written(tmp_path / "bad.jsonl", '{"prompt": "Who?"}\n{"prompt": "Wh\n')])


def test_files_of_one_name_are_one_group(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    paths = [written(tmp_path / "safe.txt", "One?\n"), written(tmp_path / "other" / "safe.txt", "Two?\n")]
    assert read_prompts(paths) == {"safe": ["One?", "Two?"]}
