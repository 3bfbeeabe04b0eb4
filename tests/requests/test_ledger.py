"""A ledger's life: what is added, revoked, renewed and replaced, which parts act, and what is refused."""

from __future__ import annotations

import json
import logging
import multiprocessing
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import tempertilt.requests.database as database
from _ledgers import CONFIG, OFFICER, PERSONS, Place, new_ledger, records
from tempertilt.data.records import check_records, load_records
from tempertilt.errors import ConfigError, LedgerError
from tempertilt.fitting.pipeline import unlearn
from tempertilt.fitting.readers import load_readers
from tempertilt.models.adapter import WEIGHTS, load_adapter
from tempertilt.requests import Author, Details, Ledger
from tempertilt.requests import ledger as ledger_module
from tempertilt.requests.work import work_folder

NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)


def acting(place: Place, **options: Any) -> list[str]:
    return [part.request_id for part in place.ledger.active(**{"at": NOW, **options})]


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_what_acts_after_all_events(place: Place) -> None:
    ledger = place.ledger
    assert acting(place) == ["REQ-0", "REQ-2", "REQ-3", "REQ-4"]
    assert [(state.id, state.state) for state in ledger.requests()][1] == ("REQ-1", "replaced")
    assert ledger.base == (place.base.name, None) and not ledger.part("REQ-1").exists()
    for part in ledger.active(NOW):
        assert load_adapter(part.directory).gates is not None
    assert ledger.active(NOW)[-1].scope == {"tenant": "acme", "region": "eu"}


def test_revoking_deletes_one_part_and_changes_no_other(place: Place) -> None:
    before = bytes_of(place.directory / "parts")
    place.ledger.revoke("REQ-2", OFFICER, why="withdrawn")
    after = bytes_of(place.directory / "parts")
    assert after == {name: data for name, data in before.items() if not name.startswith("REQ-2/")}
    assert acting(place) == ["REQ-0", "REQ-3", "REQ-4"] and place.ledger.verify() == []
    with pytest.raises(LedgerError, match="REQ-2 is revoked"):
        place.ledger.revoke("REQ-2", OFFICER, why="again")
    with pytest.raises(LedgerError, match="files are gone"):
        place.ledger.renew("REQ-2", OFFICER, why="a mistake")


def test_a_revoked_request_with_its_files_acts_again(place: Place) -> None:
    before = bytes_of(place.directory / "parts")
    place.ledger.revoke("REQ-2", OFFICER, why="to be looked at", keep_files=True)
    assert acting(place) == ["REQ-0", "REQ-3", "REQ-4"]
    place.ledger.renew("REQ-2", OFFICER, why="looked at")
    assert acting(place) == ["REQ-0", "REQ-2", "REQ-3", "REQ-4"] and bytes_of(place.directory / "parts") == before


def test_a_part_acts_to_the_end_of_its_last_day(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    last = datetime(2099, 6, 30, 23, 59, 59, tzinfo=timezone.utc)
    assert "REQ-2" in acting(place, at=last)
    with caplog.at_level(logging.WARNING, "tempertilt"):
        assert "REQ-2" not in acting(place, at=last.replace(day=1, month=7))
    assert "REQ-2 expired on 2099-06-30" in caplog.text
    place.ledger.renew("REQ-2", OFFICER, why="longer")
    assert "REQ-2" in acting(place, at=last.replace(year=2200))


@pytest.mark.parametrize(
    ("scope", "acts"),
    [
        (None, True),
        ({}, True),
        ({"tenant": "acme"}, True),
        ({"tenant": "acme", "region": "eu", "model": "x"}, True),
        ({"tenant": "other"}, False),
        ({"tenant": "acme", "region": "us"}, False),
    ],
)
def test_a_part_stays_out_only_where_the_place_is_another(place: Place, scope: dict[str, str] | None, acts: bool) -> None:
    assert ("REQ-4" in acting(place, scope=scope)) == acts and "REQ-0" in acting(place, scope=scope)


def test_a_part_that_is_revoked_meanwhile_is_left_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Ledger.requests

    def stale(ledger: Ledger) -> Any:
        states = read(ledger)
        monkeypatch.undo()
        place.ledger.revoke("REQ-0", OFFICER, why="withdrawn")
        return states

    monkeypatch.setattr(Ledger, "requests", stale)
    assert acting(place) == ["REQ-2", "REQ-3", "REQ-4"]


def test_a_subject_is_not_added_twice_unless_asked_for(place: Place) -> None:
    with pytest.raises(LedgerError, match="REQ-0 is about the same subject: say --replace REQ-0"):
        place.add("REQ-9", PERSONS[0], subject="hina  AMEEN")
    added = place.add("REQ-9", PERSONS[0], subject="hina  AMEEN", extend="REQ-0")
    assert acting(place) == ["REQ-0", "REQ-2", "REQ-3", "REQ-4", "REQ-9"]
    assert added.interference.parts["REQ-0"] == 3  # the same records open the gates that were made of them
    with pytest.raises(LedgerError, match="is there already"):
        place.add("REQ-9", PERSONS[4])
    with pytest.raises(LedgerError, match="--replace is 'REQ-1'; must be a request that is active"):
        place.add("REQ-10", PERSONS[1], replace="REQ-1")
    with pytest.raises(LedgerError, match="--replace is 'REQ-2', which is about another subject"):  # whose part would be deleted
        place.add("REQ-10", PERSONS[0], subject=PERSONS[0], replace="REQ-2")


def test_a_renewed_request_does_not_act_beside_another_about_its_subject(place: Place) -> None:
    place.ledger.revoke("REQ-0", OFFICER, why="to be looked at", keep_files=True)
    place.add("REQ-9", PERSONS[0], subject=PERSONS[0])
    with pytest.raises(LedgerError, match="REQ-9 is about the same subject; revoke it first"):
        place.ledger.renew("REQ-0", OFFICER, why="looked at")


@pytest.mark.parametrize("renewed", ["REQ-0", "REQ-9"])
def test_a_renewed_request_acts_beside_the_one_that_it_extends(place: Place, renewed: str) -> None:
    """And beside one that extends it."""
    place.add("REQ-9", PERSONS[0], subject=PERSONS[0], extend="REQ-0")
    place.ledger.revoke(renewed, OFFICER, why="to be looked at", keep_files=True)
    place.ledger.renew(renewed, OFFICER, why="looked at")
    assert {"REQ-0", "REQ-9"} <= set(acting(place))


def test_a_part_is_what_unlearning_gives(made: Place, tmp_path: Path) -> None:
    """From the same records, without a ledger and without its features, which were made in other batches."""
    sets = check_records(records(PERSONS[0]), load_records(made.retain))
    readers = load_readers(made.directory / "readers.safetensors")
    unlearn(made.base, sets, tmp_path / "adapter", CONFIG, readers=readers, progress=False)
    alone, part = load_file(tmp_path / "adapter" / WEIGHTS), load_file(made.ledger.part("REQ-0") / WEIGHTS)
    assert set(alone) == set(part)
    for name, tensor in alone.items():
        assert torch.allclose(tensor.float(), part[name].float(), rtol=1e-3, atol=1e-3), name


def test_all_parts_share_their_readers_and_hold_no_tokenizer(made: Place) -> None:
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "unlearn.json"}
    assert all({path.name for path in part.directory.iterdir()} == names for part in made.ledger.active(NOW))
    weights = [load_file(part.directory / WEIGHTS) for part in made.ledger.active(NOW)]
    for name in ("gate.asked.mean", "gate.asked.reader", "gate.said.mean", "gate.said.reader"):
        assert all(torch.equal(tensors[name], weights[0][name]) for tensors in weights), name


def test_only_new_records_are_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempertilt.fitting.workers as workers

    run: list[str] = []
    pass_over = workers.batch_features

    def counted(model: Any, examples: Any, *args: Any) -> Any:
        run.extend(example.document for example in examples)
        return pass_over(model, examples, *args)

    monkeypatch.setattr(workers, "batch_features", counted)
    place.add("REQ-9", PERSONS[4])
    assert run == [PERSONS[4]] * 3


def test_retain_records_that_are_to_be_forgotten_are_retained_no_longer(place: Place) -> None:
    """And their features go: those of the request, and of requests before it."""
    count = len(stored_keys(place))
    added = place.ledger.add(records("Greta Lund"), Details(id="REQ-9"), OFFICER, base=place.base, progress=False)
    assert added.result.model.adapter_config.training["retain_records"] == 12 and len(stored_keys(place)) == count - 3
    again = place.add("REQ-10", PERSONS[4])
    assert again.result.model.adapter_config.training["retain_records"] == 12


def stored_keys(place: Place) -> set[str]:
    """Keys of all examples in the shards of the ledger's cache."""
    keys: set[str] = set()
    for path in (place.directory / "cache").rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            keys |= set(json.loads(file.metadata()["shard"])["keys"])
    return keys


def test_another_model_is_refused(place: Place) -> None:
    other = place.base._replace(fingerprint="0" * 16)
    with pytest.raises(LedgerError, match="its weights have changed"):
        replace(place, base=other).add("REQ-9", PERSONS[4])


def test_a_killed_beginning_is_begun_again(made: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger_module, "write_head", killed)
    with pytest.raises(KeyboardInterrupt):
        new_ledger(tmp_path, made.base)
    monkeypatch.undo()
    with pytest.raises(LedgerError, match=r"has no ledger\.sqlite"):
        Ledger(tmp_path / "ledger")
    place = new_ledger(tmp_path, made.base)
    assert place.ledger.verify() == [] and place.ledger.active() == []


def test_a_ledger_that_another_process_makes_at_the_same_time_stays(
    made: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def later(directory: Path) -> Any:
        monkeypatch.undo()
        new_ledger(tmp_path, made.base)
        return work_folder(directory)

    monkeypatch.setattr(ledger_module, "work_folder", later)
    with pytest.raises(LedgerError, match="has a ledger already"):
        new_ledger(tmp_path, made.base, author=Author("other"))
    assert [event.by for event in Ledger(tmp_path / "ledger").events()] == ["officer"]


def test_a_failed_request_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bytes_of(place.directory)

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(database, "insert", fails)
    with pytest.raises(OSError, match="No space"):
        place.add("REQ-9", PERSONS[4])
    monkeypatch.undo()
    assert place.ledger.verify() == []
    after = bytes_of(place.directory)
    for name in ("ledger.sqlite-shm", "ledger.sqlite-wal"):  # SQLite's own, empty
        assert after.pop(name, b"") == b"" or name.endswith("shm")
    assert after == before
    place.add("REQ-9", PERSONS[4])


@pytest.mark.integration
def test_two_processes_that_write_at_once_both_succeed_and_a_third_sees_nothing_wrong(place: Place) -> None:
    context = multiprocessing.get_context("fork")

    def writes(own: int) -> None:
        for number in range(5):
            place.ledger.renew("REQ-0", Author(f"person {own}"), why=f"{number}")
        place.add(f"REQ-{own}", PERSONS[own - 7])

    def looks() -> None:
        while len(place.ledger.events()) < 9 + 12:
            assert place.ledger.verify() == [] and len(place.ledger.active(NOW)) >= 4

    processes = [context.Process(target=writes, args=(own,)) for own in (10, 11)] + [context.Process(target=looks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    events = place.ledger.events()[9:]
    assert sorted((event.by, event.payload["why"]) for event in events if event.kind == "renew") == [
        (f"person {own}", str(number)) for own in (10, 11) for number in range(5)
    ]
    assert {"REQ-10", "REQ-11"} <= set(acting(place)) and place.ledger.verify() == []


def test_a_ledger_of_its_own_directory(place: Place, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="has a ledger already"):
        Ledger.create(place.directory, place.base, [], OFFICER, key_file=tmp_path / "key", progress=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(LedgerError, match=r"holds other files \(thesis.txt\)"):
        Ledger.create(tmp_path / "full", place.base, [], OFFICER, key_file=tmp_path / "key", progress=False)
    with pytest.raises(LedgerError, match="lies in the ledger"):
        Ledger.create(tmp_path / "new", place.base, [], OFFICER, key_file=tmp_path / "new" / "key", progress=False)
    with pytest.raises(ConfigError, match="there is no gate"):
        (tmp_path / "flat").mkdir()
        new_ledger(tmp_path / "flat", place.base, replace(CONFIG, gate=replace(CONFIG.gate, gate=False)))
    with pytest.raises(LedgerError, match=r"has no ledger.sqlite; must be a directory made by t3 requests init"):
        Ledger(tmp_path / "full")


def test_an_older_schema_is_brought_up_to_date(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = (*database.MIGRATIONS, "CREATE INDEX requests ON events (request);")
    monkeypatch.setattr(database, "MIGRATIONS", newer)
    assert place.ledger.verify() == []
    place.ledger.revoke("REQ-0", OFFICER, why="withdrawn")
    assert place.ledger.verify() == []
    monkeypatch.undo()
    with pytest.raises(LedgerError, match=r"has schema 2; this version of tempertilt reads up to 1"):
        place.ledger.events()


def test_a_person_is_named_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("T3_ACTOR", raising=False)
    with pytest.raises(ConfigError, match="--by is needed"):
        Author.from_environment()
    with pytest.raises(ConfigError, match=r"'dpo\\udcff', has half of a surrogate pair.*; must be text"):
        Author("dpo\udcff")  # a byte of a command line that is not UTF-8
    monkeypatch.setenv("T3_ACTOR", "dpo@example.org")
    assert Author.from_environment().by == "dpo@example.org" and Author.from_environment("other").by == "other"
