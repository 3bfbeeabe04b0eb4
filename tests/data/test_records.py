"""Records: every shape and kind of file, every refusal, and the checks between sets."""

from __future__ import annotations

import csv
import json
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tempertilt.data.records import Message, Record, check_records, load_records
from tempertilt.errors import ConfigError, DataError, MissingExtraError

QA = {"question": "Who?", "answer": "Hina Ameen."}
CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Hina Ameen."}]


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def message_of(source: str | Path, error: type[Exception] = DataError, **options: object) -> str:
    with pytest.raises(error) as caught:
        load_records(source, **options)  # type: ignore[arg-type]
    return str(caught.value)


def record(question: str, answer: str = "a", source: str = "f:1") -> Record:
    return Record.from_question(question, answer, document=source, source=source)


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_every_shape_of_row(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl",
        QA,
        {"prompt": "The author ", "completion": "is Hina."},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"messages": [{"role": "system", "content": "Be brief."}, *CHAT]},
        {"text": "A long text."},
    )
    qa, completion, conversation, chat, text = load_records(path)
    turns = (Message("user", "Who?"), Message("assistant", "Hina Ameen."))
    assert (qa.kind, qa.messages, qa.prompt, qa.answer) == ("chat", turns, "", "Hina Ameen.")
    assert (qa.document, qa.source) == ("a.jsonl:1", f"{path}:1")
    assert (completion.kind, completion.messages) == ("completion", ())
    assert (completion.prompt, completion.answer) == ("The author ", "is Hina.")
    assert (conversation.kind, conversation.messages) == ("chat", turns)
    assert chat.messages == (Message("system", "Be brief."), *turns)
    assert (text.kind, text.answer, text.prompt, text.source) == ("text", "A long text.", "", f"{path}:5")
    assert [r.question for r in (qa, completion, chat, text)] == ["Who?", "The author ", "Who?", "A long text."]
    assert Record.from_text("x" * 200, document="d", source="s").question == "x" * 79 + "…"


def test_documents_extra_fields_and_nulls(tmp_path: Path) -> None:
    rows = [
        QA | {"document": "author-1", "score": [1]},
        QA | {"document": 7},
        QA | {"document": None, "text": None},
        QA | {"document": " ", "prompt": "an extra column"},
    ]
    records = load_records(write_jsonl(tmp_path / "a.jsonl", *rows))
    assert [r.document for r in records] == ["author-1", "7", "a.jsonl:3", "a.jsonl:4"]
    assert {r.kind for r in records} == {"chat"}


def test_an_empty_prompt_is_allowed(tmp_path: Path) -> None:
    assert load_records(write_jsonl(tmp_path / "a.jsonl", {"prompt": "", "completion": "x"}))[0].prompt == ""


# --- kinds of file ---------------------------------------------------------------------------------------------------


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


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "1"}, {"text": "2"}, {"text": ""})
    assert [r.answer for r in load_records(path, limit=2)] == ["1", "2"]
    assert "a.jsonl:3" in message_of(path, limit=3)
    assert "limit is 0; valid: 1 or more" in message_of(path, ConfigError, limit=0)


def test_reads_the_shared_files(shared: Path) -> None:
    forget = load_records(shared / "tofu30" / "forget.jsonl")
    assert len(forget) == 200
    assert len({r.document for r in forget}) == 10
    assert forget[0].answer == "The author's name is Hina Ameen."
    counts = {path.name: len(load_records(path)) for path in sorted((shared / "tofu").glob("*.jsonl"))}
    assert counts["full.jsonl"] == 4000
    assert counts["retain90.jsonl"] + counts["forget10.jsonl"] == 4000
    retain = load_records(shared / "tofu30" / "retain.jsonl")
    assert check_records(forget, retain, load_records(shared / "tofu30" / "holdout.jsonl")).dropped == []


# --- the hub ---------------------------------------------------------------------------------------------------------


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
    assert "choose a split; valid: a, b" in message_of("org/many")
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


# --- refusals --------------------------------------------------------------------------------------------------------

SHORT_CHAT = [CHAT[0]]
BAD_ROWS = [
    ({"question": "Who?"}, "field 'answer' is missing", "question + answer"),
    ({"question": "Who?", "answer": None}, "field 'answer' is null", "question + answer"),
    ({"question": None, "answer": "x"}, "field 'question' is null", "question + answer"),
    ({"prompt": "a", "chosen": "b"}, "field 'completion' is missing", "prompt + completion"),
    (QA | {"answer": ""}, "field 'answer' has no text: ''", "a string with text"),
    (QA | {"answer": " \n"}, "field 'answer' has no text: ' \\n'", "a string with text"),
    (QA | {"question": 12}, "field 'question' is 12 (int)", "a string with text"),
    (QA | {"answer": ["x"]}, "field 'answer' is ['x'] (list)", "a string with text"),
    ({"text": "a\ud800b"}, "field 'text' has half of a surrogate pair, '\\ud800', at character 1", "Unicode text"),
    ({"prompt": 1, "completion": "b"}, "field 'prompt' is 1 (int)", "a string"),
    ({"prompt": "a", "completion": " "}, "field 'completion' has no text", "a string with text"),
    ({"prompt": "a", "completion": CHAT}, "are str and list", "two strings or two message lists"),
    ({"prompt": CHAT[:1], "completion": CHAT[:1]}, "the last message is from 'user'", "'assistant'"),
    (QA | {"text": "x"}, "the row holds question + answer and text", "one of question + answer"),
    ({}, "fields seen: none", "question + answer, prompt + completion, messages or text"),
    ({"instruction": "a", "output": "b"}, "fields seen: instruction, output", "prompt + completion"),
    ("a string", "the row is 'a string' (str)", "an object with named fields"),
    ([QA], "(list)", "an object with named fields"),
    (None, "the row is null", "an object with named fields"),
    (QA | {"document": 1.5}, "field 'document' is 1.5 (float)", "a string or a whole number"),
    (QA | {"document": True}, "field 'document' is True (bool)", "a string or a whole number"),
    ({"messages": "hi"}, "field 'messages' is 'hi' (str)", "a list of objects with role and content"),
    ({"messages": []}, "field 'messages' is [] (list)", "a list of objects with role and content"),
    ({"messages": [CHAT[0], "x"]}, "message 2 is 'x' (str)", "role and content"),
    ({"messages": SHORT_CHAT}, "field 'messages': the last message is from 'user'", "'assistant'"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "message 1: role is 'bot' (str)", "system, user, assistant"),
    ({"messages": [{"from": "gpt", "value": "x"}]}, "message 1: role is null", "system, user, assistant"),
    ({"messages": [CHAT[0], {"role": "assistant"}]}, "message 2: content is null", "a string with text"),
    ({"messages": [CHAT[0], {"role": "assistant", "content": " "}]}, "message 2: content has no text", "string"),
    ({"messages": CHAT[1:]}, "the roles are assistant", "at least one message from 'user'"),
    ({"messages": [*CHAT, {"role": "system", "content": "x"}, *CHAT]}, "message 3 is from 'system'", "only the first"),
]


@pytest.mark.parametrize(("row", "seen", "valid"), BAD_ROWS)
def test_bad_row_names_file_line_field_value_and_what_is_valid(tmp_path: Path, row: object, seen: str, valid: str) -> None:
    path = write_jsonl(tmp_path / "bad.jsonl", {"text": "fine"}, row)
    message = message_of(path)
    line = next(line for line in message.splitlines() if f"{path}:2:" in line)
    assert seen in line
    assert valid in line.split("valid: ")[1]
    assert "1 of 2 rows" in message


def test_values_are_shortened(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": ["x" * 500]})
    assert "xxx… (list)" in message_of(path)
    assert len(message_of(path)) < 600


def test_all_bad_rows_are_reported_up_to_ten(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", *[{"text": ""}] * 13, {"text": "fine"})
    lines = message_of(path).splitlines()
    assert "13 of 14 rows are not usable" in lines[0]
    assert len(lines) == 12
    assert f"{path}:10: field 'text'" in lines[10]
    assert lines[11].strip() == "... and 3 more"


def test_invalid_json_lines_are_reported_with_the_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    nested, digits = "[" * 100_000, '{"text": ' + "1" * 5000 + "}"
    path.write_text(f'{{"text": "a"}}\n{{"text": "b" "c"}}\n{nested}\n{digits}\n{{"text": ""}}\n')
    lines = message_of(path).splitlines()
    assert "4 of 5 rows" in lines[0]
    assert f"{path}:2: not JSON: Expecting ',' delimiter at column 14" in lines[1] and "valid: an object per line" in lines[1]
    assert f"{path}:3: not JSON that can be read" in lines[2]
    assert f"{path}:4: not JSON that can be read" in lines[3]
    assert f"{path}:5: field 'text'" in lines[4]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[{"text": "a"},\n {"text" "b"}]', (":2: not JSON", "line 2 column 10", "valid: a list of objects")),
        ('{"text": "a"}\n{"text": "b"}\n', (":2: not JSON: Extra data at line 2 column 1", ".jsonl")),
        ('"words"', ("holds 'words' (str)", 'valid: a list of objects, or {"data": [...]}')),
        ('{"rows": []}', ("holds {'rows': []} (dict)", "valid: a list of objects")),
        ("[" * 100_000, ("not JSON that can be read",)),
        ('[{"text": "a"}, 3]', (":row 2: the row is 3 (int)", "valid: an object")),
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
            (":1: the header holds the columns ['Who?', 'Hina']", "valid: question + answer"),
        ),
        ("\nquestion;answer\na;b\n", (":2: the header holds", "'question;answer'", "separated by commas")),
        ("text,text\na,b\n", (":1: the header names 'text' more than once", "valid: once each")),
        ("question,answer\na,b\nc\n", (":3: the number of cells is 1; valid: 2",)),
        ("question,answer\na,b,c\n", (":2: the number of cells is 3; valid: 2",)),
        ("question,answer\na,\n", (":2: field 'answer' has no text: ''", "valid: a string with text")),
        ('question,answer\na,b\n"open,c\nd,e\n', (":3: not CSV", "row that starts on this line")),
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
    assert f"{path}:row 2: field 'text' is null; valid: text" in message_of(path)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert "no records" in message_of(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_not_utf8_names_offset_and_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    message = message_of(path)
    assert f"{path}:2: not UTF-8 text: byte 0xe9 at offset 27" in message
    assert "valid: UTF-8" in message


def test_empty_file_and_directory_without_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n \n")
    assert f"{path}: no records; valid rows hold question + answer" in message_of(path)
    message = message_of(tmp_path)
    assert f"{tmp_path}: the directory holds no text file; valid: .txt or .md files" in message
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


# --- keys and sets ---------------------------------------------------------------------------------------------------


def test_key_is_of_kind_and_content_only() -> None:
    base = record("Who is Zoë?", "A  painter.\n")
    assert len(base.key) == 64 and int(base.key, 16) >= 0
    same = [record("Who is Zoe\u0308?", " A painter.", source="other:9"), record(" Who  is Zoë?", "A\tpainter.")]
    assert {r.key for r in same} == {base.key}
    where = {"document": "d", "source": "s"}
    different = [
        record("Who is Zoë? A", "painter."),
        record("Who is zoë?", "A painter."),
        Record.from_completion("Who is Zoë?", "A painter.", **where),
        Record.from_completion("", "Who is Zoë? A painter.", **where),
        Record.from_text("Who is Zoë? A painter.", **where),
        Record.from_messages([Message("system", "x"), *base.messages], **where),
    ]
    assert len({r.key for r in [base, *different]}) == 1 + len(different)


def test_check_records_accepts_disjoint_sets() -> None:
    forget, retain = [record("1")], [record("2"), record("3")]
    assert check_records(forget, retain) == (forget, retain, [], [])
    assert check_records(forget, retain, [record("4")]).holdout == [record("4")]


def overlapping() -> tuple[list[Record], list[Record], list[Record]]:
    forget = [record("1", source="f:1"), record(" 1 ", source="f:2"), record("2", source="f:3")]
    retain = [record("2", source="r:1"), record("3", source="r:2"), record("3", source="r:3")]
    holdout = [record("1", source="h:1"), record("3", source="h:2"), record("4", source="h:3")]
    return forget, retain, holdout


PAIRS = [
    "forget f:2 repeats f:1",
    "retain r:1 is also in forget, f:3",
    "retain r:3 repeats r:2",
    "holdout h:1 is also in forget, f:1",
    "holdout h:2 is also in retain, r:2",
]


def test_check_records_refuses_what_occurs_twice() -> None:
    with pytest.raises(DataError) as caught:
        check_records(*overlapping())
    lines = str(caught.value).splitlines()
    assert "5 records occur more than once; valid: every record once" in lines[0] and "drop_overlap" in lines[0]
    assert [line.strip() for line in lines[1:]] == PAIRS


def test_check_records_lists_ten() -> None:
    with pytest.raises(DataError, match=r"12 records occur(.|\n)*\.\.\. and 2 more"):
        check_records([record("1")] * 13, [record("2")])


def test_check_records_drops_on_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tempertilt"):
        forget, retain, holdout, dropped = check_records(*overlapping(), drop_overlap=True)
    assert [[r.source for r in records] for records in (forget, retain, holdout)] == [["f:1", "f:3"], ["r:2"], ["h:3"]]
    assert dropped == PAIRS
    warnings = [entry.message for entry in caplog.records if entry.levelno == logging.WARNING]
    assert warnings == ["dropped 5 records that occur more than once"]
    assert [entry.message for entry in caplog.records if entry.levelno == logging.INFO] == [f"dropped {p}" for p in PAIRS]


def test_check_records_refuses_empty_sets() -> None:
    one = [record("1", source="f:1")]
    with pytest.raises(DataError, match=r"retain: all 1 records occur elsewhere(.|\n)*r:1 is also in forget, f:1"):
        check_records(one, [record("1", source="r:1")], drop_overlap=True)
    with pytest.raises(DataError, match="holdout: all 1 records"):
        check_records(one, [record("2")], one, drop_overlap=True)
    with pytest.raises(DataError, match="forget: no records; valid: at least one"):
        check_records([], one)
