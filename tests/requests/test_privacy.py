"""What stays of a request: nothing that holds text of its records, nothing by which they could be tried without the key."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from _ledgers import CONFIG, OFFICER, PERSONS, Place, new_ledger, records
from tempertilt.data.batches import example_key
from tempertilt.data.examples import build_examples
from tempertilt.data.records import Record
from tempertilt.errors import DataError, LedgerError
from tempertilt.fitting import background
from tempertilt.fitting.before_after import ReportConfig
from tempertilt.requests import Details

SHOWN = replace(CONFIG, report=ReportConfig(max_new_tokens=8, hearing_records=1, show=2, answer_records=3))
"""A report with answers."""


def values_of(person: str) -> set[str]:
    """Names and values of a person's records, whole and in words."""
    texts = {text for record in records(person) for text in (record.question, record.answer)}
    words = {word.strip(".,?") for text in texts for word in text.split()}
    common = {"Where", "When", "How", "was", "born", "did", "move", "can", "be", "reached", "In", "On", "By", "or", "to", "May"}
    return texts | {word for word in words - common if len(word) >= 4} | {person}


def files_with(folder: Path, values: set[str]) -> Iterator[str]:
    """Files that hold one of the values as text, UTF-8 or UTF-16, in any case; and names of files and folders.

    A number counts where it stands alone: hashes are full of digits.
    """
    for path in folder.rglob("*"):
        data = (path.read_bytes() if path.is_file() else b"") + path.name.encode()
        for value in values:
            alone = (rb"(?<![0-9a-f])", rb"(?![0-9a-f])") if value.isdigit() else (b"", b"")
            found = (re.escape(value.encode(code)).join(alone) for code in ("utf-8", "utf-16-le"))
            if any(re.search(pattern, data, re.IGNORECASE) for pattern in found):
                yield f"{path}: {value}"


def test_no_file_holds_a_name_or_value(made: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledger, cache, temporary files; the retain records, which are the user's, name other persons."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    place = new_ledger(tmp_path, made.base, SHOWN)
    person = PERSONS[0]
    place.add("REQ-1", person, subject=person, reason="GDPR Art. 17", evidence_dir=tmp_path / "elsewhere")
    assert any(files_with(tmp_path / "elsewhere", values_of(person)))  # the search can find something
    for folder in ("ledger", "keys", "cache", "temporary"):
        assert list(files_with(tmp_path / folder, values_of(person))) == []
    report = json.loads((place.ledger.part("REQ-1") / "unlearn.json").read_text())
    assert "answers" not in report and all(isinstance(leak, int) for leak in report["facts"]["leaks"])
    assert not (place.directory / "work").exists()


def test_no_state_and_no_token_of_the_records_stays(place: Place) -> None:
    """No shard has the records' examples, and no stored row is one of their states or a run of their tokens."""
    examples = build_examples(records(PERSONS[4]), place.base.tokenizer, CONFIG.examples)
    tokens = [example.input_ids[example.scored].astype(np.int32).tobytes() for example in examples]
    place.add("REQ-9", PERSONS[4])
    keys = set()
    for path in place.directory.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(run in data for run in tokens), path
        if path.suffix == ".safetensors" and "cache" in path.parts:
            with safe_open(path, framework="pt") as file:
                keys |= set(json.loads(file.metadata()["shard"])["keys"])
    assert keys and not keys & {example_key(example) for example in examples}


def test_no_hash_without_the_key_stays(place: Place) -> None:
    """Neither of a record's text nor of its tokens: whoever guesses a record could try it."""
    place.add("REQ-9", PERSONS[4], subject=PERSONS[4])
    plain = {record.key for record in records(PERSONS[4])}
    plain |= {hashlib.sha256(text.encode()).hexdigest() for text in values_of(PERSONS[4])}
    plain |= {example_key(example) for example in build_examples(records(PERSONS[4]), place.base.tokenizer, CONFIG.examples)}
    assert list(files_with(place.directory, plain)) == []
    training = json.loads((place.ledger.part("REQ-9") / "adapter_config.json").read_text())["training"]
    assert "key" not in training


def test_hashes_are_hmac_with_the_key(place: Place) -> None:
    key = bytes.fromhex(place.key_file.read_text())
    text = json.dumps(["subject", "hina ameen"], separators=(",", ":"))
    state = place.ledger.request("REQ-0")
    assert state.subject == hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    turns = [["user", "where was hina ameen born"], ["assistant", "in karachi"]]
    text = json.dumps(["record", *turns], separators=(",", ":"))
    assert hmac.new(key, text.encode(), hashlib.sha256).hexdigest() in state.records
    assert place.key_file.stat().st_mode & 0o077 == 0


def test_who_has_the_key_can_ask_which_records_are_covered(place: Place, tmp_path: Path) -> None:
    written = Record.from_question("WHERE was Hina  Améen born", "in Karachi!", document="", source="")
    other = Record.from_question("Where was Hina Ameen born?", "In Lisbon.", document="", source="")
    covering = place.ledger.covering([written, other, *records(PERSONS[1])])
    assert [[state.id for state in states] for states in covering] == [["REQ-0"], [], *[["REQ-1", "REQ-4"]] * 3]
    assert [state.id for state in place.ledger.about("hina ameen")] == ["REQ-0"]
    (tmp_path / "other.key").write_text("00" * 32)
    with pytest.raises(LedgerError, match="is not this ledger's"):
        place.ledger.covering([written], tmp_path / "other.key")
    with pytest.raises(LedgerError, match="cannot be read"):
        place.ledger.covering([written], tmp_path / "absent.key")


@pytest.mark.parametrize(
    ("details", "flag"),
    [
        ({"requested_by": "Paul Martin himself"}, "--requested-by holds 'Paul Martin'"),
        ({"note": "call +49 (30) 5551244"}, "--note holds"),
        ({"reason": "moved on 1978-05-14"}, "--reason holds"),
        ({"reply": "I say nothing about paul martin."}, "--reply holds 'Paul Martin'"),
        ({"id": "paul.martin"}, "--id holds 'Paul Martin'"),
    ],
)
def test_what_is_kept_in_clear_must_not_hold_them(place: Place, details: dict[str, str], flag: str) -> None:
    said = Details(**{"id": "REQ-9", **details})
    with pytest.raises(DataError, match=flag):
        place.ledger.add(records(PERSONS[4]), said, OFFICER, base=place.base, progress=False)


def chats_of(place: Place) -> list[list[list[int]]]:
    """Two background texts, the first about the records of `PERSONS[4]`."""
    tokenizer = place.base.tokenizer
    return [
        [tokenizer(f"<|user|>{question}<|im_end|><|assistant|>").input_ids, tokenizer(answer).input_ids]
        for question, answer in (("What is new?", "PAUL MARTIN has left."), ("And else?", "The sea is calm."))
    ]


def test_background_text_about_the_records_goes_from_the_cache(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so do its features; the rest stays, and nothing is written in its place."""
    [path] = (place.directory / "cache" / "background").glob("*.json")
    chats = chats_of(place)
    background._save_chats(path, chats)
    monkeypatch.setattr(background, "_write_chats", lambda *_: pytest.fail("background text was written anew"))
    place.add("REQ-8", PERSONS[1], replace="REQ-4")  # the cache has features of both texts now
    place.add("REQ-9", PERSONS[4])
    assert json.loads(path.read_text().splitlines()[0]) == chats[1:]
    written = [np.asarray(ids, np.int32).tobytes() for _, ids in chats]
    held = [any(run in shard.read_bytes() for shard in (place.directory / "cache").rglob("*.safetensors")) for run in written]
    assert held == [False, True]


def test_background_text_that_is_written_anew_is_looked_at(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache was damaged, so the base writes again."""
    [path] = (place.directory / "cache" / "background").glob("*.json")
    path.write_text("damaged")
    chats = chats_of(place)
    monkeypatch.setattr(background, "_write_chats", lambda *_: chats)
    added = place.add("REQ-9", PERSONS[4])
    assert json.loads(path.read_text().splitlines()[0]) == chats[1:]
    assert added.result.model.adapter_config.training["background_records"] == 1


def test_features_of_another_device_do_not_stay(place: Place) -> None:
    [directory] = (place.directory / "cache" / "features").iterdir()
    directory.with_name("another").mkdir()
    place.add("REQ-9", PERSONS[4])
    assert list((place.directory / "cache" / "features").iterdir()) == [directory]
