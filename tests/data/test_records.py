"""Loading records, their keys, and the checks between sets."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from support.records import message_of, record, write_jsonl
from tempertilt.data.records import Message, Record, check_records, load_records
from tempertilt.errors import ConfigError, DataError


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "1"}, {"text": "2"}, {"text": ""})
    assert [r.answer for r in load_records(path, limit=2)] == ["1", "2"]
    assert "a.jsonl:3" in message_of(path, limit=3)
    assert "limit is 0; must be a whole number >= 1" in message_of(path, ConfigError, limit=0)


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


def test_all_bad_rows_are_reported_up_to_ten(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", *[{"text": ""}] * 13, {"text": "fine"})
    lines = message_of(path).splitlines()
    assert "13 of 14 rows are not usable" in lines[0]
    assert len(lines) == 12
    assert f"{path}:10: field 'text'" in lines[10]
    assert lines[11].strip() == "... and 3 more"


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
    assert "5 records occur more than once; must be once" in lines[0] and "drop_overlap" in lines[0]
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
    with pytest.raises(DataError, match="forget: no records; must be at least one"):
        check_records([], one)
