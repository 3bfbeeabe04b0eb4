"""Every kind of file, and the hub: rows with their places, and every refusal."""

from __future__ import annotations

import csv
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.records import CHAT, QA, message_of, write_jsonl
from tempertilt.data.records import load_records
from tempertilt.errors import ConfigError, MissingExtraError


def test_jsonl_blank_lines_bom_crlf_and_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "a.NDJSON"
    path.write_bytes(b'\xef\xbb\xbf\n{"text": "one"}\r\n   \n{"text": "two\xe2\x80\xa8still two"}\n\n{"text": "\xc3\xa9"}')
    records = load_records(path)
    assert [r.answer for r in records] == ["one", "two\u2028still two", "é"]
    assert [r.source for r in records] == [f"{path}:2", f"{path}:4", f"{path}:6"]


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"data": rows}])
def test_json(tmp_path: Path, wrap: Callable[[object], object]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(wrap([QA, {"text": "b"}]), indent=1))
    records = load_records(path)
    assert [r.kind for r in records] == ["chat", "text"]
    assert (records[1].source, records[1].document) == (f"{path}:row 2", "a.json:2")


def test_csv_counts_physical_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffquestion, answer ,extra\r\n"two\nlines",a,1\r\n\r\n"say ""hi""","b, c",2\r\n'.encode())
    records = load_records(path)
    assert [r.messages[0].content for r in records] == ["two\nlines", 'say "hi"']
    assert [r.answer for r in records] == ["a", "b, c"]
    assert [r.source for r in records] == [f"{path}:2", f"{path}:5"]


def test_csv_cells_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "word " * 50_000 + "\n")
    limit = csv.field_size_limit()
    assert len(load_records(path)[0].answer) == 250_000
    assert csv.field_size_limit() == limit


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [
        QA | {"messages": None, "document": 3},
        {"question": None, "answer": None, "messages": CHAT, "document": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    records = load_records(path)
    assert records[0].messages == records[1].messages
    assert [r.source for r in records] == [f"{path}:row 1", f"{path}:row 2"]
    assert [r.document for r in records] == ["3", "a.parquet:2"]


def test_directory_of_text_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b.TXT", "c.rst", ".git/x.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(f"text of {name}\r\nend\n".encode())
    records = load_records(tmp_path)
    assert [r.document for r in records] == ["a/b.TXT", "a/z.md", "b.txt"]
    assert records[2].source == str(tmp_path / "b.txt")
    assert records[2].answer == "text of b.txt\nend\n"
    assert load_records(tmp_path / "b.txt")[0].document == "b.txt"


@pytest.fixture()
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """A stand-in for `datasets`; returns the list of its calls."""
    calls: list[tuple[object, ...]] = []
    splits = {"train": [QA], "test": [{"text": "t"}, {"text": " "}]}

    def load_dataset(repo: str, config: str | None, split: str | None) -> object:
        calls.append((repo, config, split))
        if repo == "org/absent":
            raise FileNotFoundError("Dataset 'org/absent' doesn't exist on the Hub")
        found = {"org/one": {"only": [QA]}, "org/many": {"a": [QA], "b": [QA]}}.get(repo, splits)
        return found if split is None else found[split]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_hub(hub: list[tuple[object, ...]]) -> None:
    (row,) = load_records("locuslab/TOFU:forget10")
    assert (row.document, row.source) == ("locuslab/TOFU:forget10:train:1", "locuslab/TOFU:forget10:train:row 1")
    assert load_records("org/one")[0].source == "org/one:only:row 1"
    assert load_records("org/name:config:test", limit=1)[0].answer == "t"
    assert load_records("org/name", split="test", limit=1)[0].answer == "t"
    expected = [("locuslab/TOFU", "forget10"), ("org/one", None), ("org/name", "config"), ("org/name", None)]
    assert hub == [(*call, split) for call, split in zip(expected, (None, None, "test", "test"))]


def test_hub_refusals(hub: list[tuple[object, ...]]) -> None:
    assert "org/name:test:row 2: field 'text' has no text" in message_of("org/name", split="test")
    message = message_of("org/absent")
    assert "org/absent" in message and "no such local path" in message and "doesn't exist on the Hub" in message
    assert "choose a split; must be one of a, b" in message_of("org/many")
    assert "names the split 'test'" in message_of("org/name:c:test", ConfigError, split="train")


def test_a_path_is_never_looked_up_on_the_hub(
    hub: list[tuple[object, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for source in (
        "",
        "name",
        "data/x.jsonl",
        "data/x.JSON:train",
        "./org/name",
        "~/org",
        "~nobody-here/x",
        "a/b/c",
        "/a/b",
    ):
        message = message_of(source)
        assert "no such file" in message and repr(source) in message, source
        assert "org/name:config" in message or "nobody" in message
    message_of(Path("org/name"))
    assert hub == []
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "a.txt").write_text("local")
    assert load_records("org/name")[0].answer == "local"
    assert "split is 'test'" in message_of("org/name", ConfigError, split="test")
    assert hub == []


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([QA]), path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'tempertilt[data]'" in message_of("org/name", MissingExtraError)
    assert "pip install 'tempertilt[data]'" in message_of(path, MissingExtraError)


def test_invalid_json_lines_are_reported_with_the_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    nested, digits = "[" * 100_000, '{"text": ' + "1" * 5000 + "}"
    path.write_text(f'{{"text": "a"}}\n{{"text": "b" "c"}}\n{nested}\n{digits}\n{{"text": ""}}\n')
    lines = message_of(path).splitlines()
    assert "4 of 5 rows" in lines[0]
    assert (
        f"{path}:2: not JSON: Expecting ',' delimiter at column 14" in lines[1] and "must be an object on each line" in lines[1]
    )
    assert f"{path}:3: not JSON that can be read" in lines[2]
    assert f"{path}:4: not JSON that can be read" in lines[3]
    assert f"{path}:5: field 'text'" in lines[4]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[{"text": "a"},\n {"text" "b"}]', (":2: not JSON", "line 2 column 10", "must be a list of objects")),
        ('{"text": "a"}\n{"text": "b"}\n', (":2: not JSON: Extra data at line 2 column 1", ".jsonl")),
        ('"words"', ("holds 'words' (str)", 'must be a list of objects, or {"data": [...]}')),
        ('{"rows": []}', ("holds {'rows': []} (dict)", "must be a list of objects")),
        ("[" * 100_000, ("not JSON that can be read",)),
        ('[{"text": "a"}, 3]', (":row 2: the row is 3 (int)", "must be an object")),
        ("", ("no records",)),
        (" \n", ("no records",)),
        ("[]", ("no records", "question + answer")),
    ],
)
def test_bad_json(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    message = message_of(path)
    for part in (str(path), *parts):
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "Who?,Hina\nWhere?,Karachi\n",
            (":1: the header holds the columns ['Who?', 'Hina']", "question + answer, prompt"),
        ),
        ("\nquestion/answer\na/b\n", (":2: the header holds", "'question/answer'", "separated by a tab, a comma", "--columns")),
        ("text,text\na,b\n", (":1: the header names 'text' more than once", "must name each column once")),
        ("question,answer\na,b\nc\n", (":3: the number of cells is 1; must be 2",)),
        ("question,answer\na,b,c\n", (":2: the number of cells is 3; must be 2",)),
        ("question,answer\na,\n", (":2: field 'answer' has no value", "must be question + answer")),
        ('question,answer\na,b\n"open,c\nd,e\n', (":3: not CSV", "row that starts on this line")),
        ('"open\n', (":1: not CSV: unexpected end of data",)),
        ("question,answer\n", ("no records",)),
        ("", ("no records",)),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    message = message_of(path)
    for part in (str(path), *parts):
        assert part in message


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"not parquet at all")
    assert f"{path}: not a Parquet file" in message_of(path)
    pq.write_table(pa.table({"text": ["a", None, 3 * "b"]}), path)
    assert f"{path}:row 2: field 'text' has no value; must be text" in message_of(path)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert "no records" in message_of(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_not_utf8_names_offset_and_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    message = message_of(path)
    assert f"{path}:2: not UTF-8 text: byte 0xe9 at offset 27" in message
    assert "must be UTF-8" in message


def test_empty_file_and_directory_without_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n \n")
    assert f"{path}: no records; a row must hold question + answer" in message_of(path)
    message = message_of(tmp_path)
    assert f"{tmp_path}: the directory holds no text file; must hold .txt or .md files" in message
    (tmp_path / "b.txt").write_text(" \n")
    assert f"{tmp_path / 'b.txt'}: field 'text' has no text" in message_of(tmp_path)


def test_unreadable_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a.jsonl"
    folder.mkdir()
    assert f"{folder}: is a directory; a .jsonl source must be a file" in message_of(folder)
    other = tmp_path / "a.docx"
    other.write_text("x")
    message = message_of(other)
    assert f"{other}: unknown kind of file '.docx'" in message and ".parquet file" in message
    assert "cannot be read" in message_of("x" * 5000 + "/a.jsonl")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    path = write_jsonl(tmp_path / "b.jsonl", QA)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert f"{path}: cannot be read: Permission denied" in message_of(path)


# --- keys and cells --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ('{"question": "a", "answer": "b", "answer": "c"}', "answer"),
        ('{"question": "a", "answer": "b", "extra": 1, "extra": 1}', "extra"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "content": "c"}]}', "content"),
        ('{"text": "a", "about": [{"by": {"x": 1, "x": 2}}]}', "x"),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, row: str, key: str) -> None:
    fault = f"the key '{key}' is given twice; must be given once"
    lines, whole = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text('{"text": "x"}\n' + row + "\n")
    assert f"{lines}:2: {fault}" in message_of(lines)
    whole.write_text(f'{{"data": [{{"text": "x"}}, {row}]}}')
    assert f"{whole}:row 2: {fault}" in message_of(whole)
    whole.write_text('{"data": [], "data": [{"text": "x"}]}')
    assert f"{whole}: the key 'data' is given twice" in message_of(whole)


MIXED = [
    {"question": "Where?", "answer": "In the safe.", "text": None, "document": "a"},
    {"question": None, "answer": None, "text": "A whole page.", "document": None},
]


def test_a_table_of_mixed_rows_means_the_same_in_every_format(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mixed.jsonl", *MIXED)
    (tmp_path / "mixed.json").write_text(json.dumps(MIXED))
    pq.write_table(pa.Table.from_pylist(MIXED), tmp_path / "mixed.parquet")
    for name, separator in (("mixed.csv", ","), ("mixed.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(MIXED[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows(MIXED)
    found = [load_records(tmp_path / f"mixed.{kind}") for kind in ("jsonl", "json", "parquet", "csv", "tsv")]
    assert all(
        [(r.kind, r.answer) for r in records] == [("chat", "In the safe."), ("text", "A whole page.")] for records in found
    )
    assert {records[0].document for records in found} == {"a"}


# --- CSV as others write it ------------------------------------------------------------------------------------------

TABLES = {
    "semicolons": ("a.csv", "question;answer\nWho, then?;Hina, one\n"),
    "semicolons and quotes": ("a.csv", '"question";"answer"\n"Who, then?";"Hina, one"\n'),
    "commas and quotes": ("a.csv", 'question,answer\n"Who, then?","Hina, one"\n'),
    "tabs in a csv": ("a.csv", "question\tanswer\nWho, then?\tHina, one\n"),
    "bars": ("a.csv", "question|answer\nWho, then?|Hina, one\n"),
    "tsv": ("a.tsv", "question\tanswer\nWho, then?\tHina, one\n"),
    "tsv with semicolons": ("a.TSV", "question;answer\nWho, then?;Hina, one\n"),
    "capitals, byte order mark, carriage returns": ("a.CSV", "\ufeffQuestion;ANSWER;Id\r\nWho, then?;Hina, one;3\r\n"),
    "separator named by Excel": ("a.csv", "sep=;\r\nquestion;answer\r\nWho, then?;Hina, one\r\n"),
    "columns without a name": ("a.csv", ';question;answer;;\n0;"Who, then?";Hina, one;;\n'),
}


@pytest.mark.parametrize("name", list(TABLES))
def test_the_header_tells_the_separator(tmp_path: Path, name: str) -> None:
    file, text = TABLES[name]
    path = tmp_path / file
    path.write_bytes(text.encode())
    [record] = load_records(path)
    assert (record.messages[0].content, record.answer) == ("Who, then?", "Hina, one")


def test_the_body_does_not_tell_the_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\nOne; two; three\nfour | five; six\n")
    assert [r.answer for r in load_records(path)] == ["One; two; three", "four | five; six"]


def test_columns_of_a_table_by_other_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Nr;Frage;Antwort\n1;Wer?;Hina Ameen\n")
    assert "the header holds the columns" in message_of(path) and "--columns question=NAME" in message_of(path)
    [record] = load_records(path, columns={"question": "frage", "answer": "ANTWORT"})
    assert (record.messages[0].content, record.answer, record.source) == ("Wer?", "Hina Ameen", f"{path}:2")


def test_utf16_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\nHina\n", encoding="utf-16")
    assert f"{path}: begins with the byte order mark of UTF-16; must be UTF-8" in message_of(path)
