"""`t3 requests`: a ledger from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from _ledgers import CONFIG, PERSONS, RETAINED, write_records
from _tiny import write_model
from tempertilt.cli import main
from tempertilt.requests import Ledger
from tempertilt.requests.adding import config_of

LITTLE = ("--rank", "4", "--match-steps", "2", "--variants", "1", "--estimate-records", "4", "--background", "2",
          "--background-tokens", "12", "--report-records", "0", "--show", "0", "--answer-records", "2", "--hearing-records", "0",
          "--max-new-tokens", "4", "--system-prompt", "", "--device", "cpu", "-q")  # fmt: skip


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, records, and a ledger without requests, which the environment names."""
    write_model(tmp_path)
    write_records(tmp_path / "retain.jsonl", *RETAINED)
    for number, person in enumerate(PERSONS):
        write_records(tmp_path / f"{number}.jsonl", person)
    monkeypatch.setenv("T3_ACTOR", "dpo@example.org")
    monkeypatch.setenv("T3_LEDGER", str(tmp_path / "ledger"))
    made = ["init", str(tmp_path / "ledger"), "--model", str(tmp_path / "model"), "--retain", str(tmp_path / "retain.jsonl")]
    assert main(["requests", *made, "--key-file", str(tmp_path / "key"), *LITTLE]) == 0
    return tmp_path


def add(folder: Path, number: int, *flags: str) -> int:
    request = ["add", "--id", f"REQ-{number}", "--forget", str(folder / f"{number}.jsonl"), "--device", "cpu", "-q"]
    return main(["requests", *request, *flags])


def test_the_life_of_a_ledger(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(folder / "ledger")
    assert config_of(ledger.settings).fit == CONFIG.fit and config_of(ledger.settings).gate == CONFIG.gate
    assert (
        add(folder, 0, "--subject", PERSONS[0], "--evidence-dir", str(folder / "evidence"), "--at", "2026-03-01T10:00:00Z") == 0
    )
    out = capsys.readouterr().out
    assert "REQ-0 added as event 2: 3 records" in out and "retained texts, measured by gates made without them" in out
    assert not any(word in out for word in (*PERSONS[0].split(), "Karachi"))
    assert (folder / "evidence" / "REQ-0" / "unlearn.json").is_file()
    assert add(folder, 1, "--scope", "tenant=acme", "--expires", "2026-03-02", "--reply", "No.", "--by", "other", "--json") == 0
    event = json.loads(capsys.readouterr().out)
    assert (event["by"], event["payload"]["scope"]) == ("other", {"tenant": "acme"})

    assert main(["requests", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["REQ-0", "active", "2026-03-01", "10:00", "-", "3", "dpo@example.org"]
    assert lines[2].split()[:2] == ["REQ-1", "expired"] and "tenant=acme" in lines[2] and "1 of them act" in lines[3]
    assert main(["requests", "covers", "--records", str(folder / "0.jsonl"), "--subject", "hina AMEEN"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the subject: REQ-0 (active)"
    assert main(["requests", "covers", "--records", str(folder / "0.jsonl"), str(folder / "2.jsonl")]) == 1
    assert capsys.readouterr().out.count("not covered") == 3

    assert main(["requests", "renew", "REQ-1", "--why", "longer", "--expires", "2099-01-01"]) == 0
    assert main(["requests", "revoke", "REQ-0", "--why", "withdrawn"]) == 0
    assert "its part is deleted" in capsys.readouterr().out
    assert [part.request_id for part in ledger.active()] == ["REQ-1"]
    assert main(["requests", "list", "--json"]) == 0
    assert [state["state"] for state in json.loads(capsys.readouterr().out)] == ["revoked", "active"]
    assert main(["requests", "show", "REQ-0"]) == 0
    assert [event["kind"] for event in json.loads(capsys.readouterr().out)["events"]] == ["add", "revoke"]
    assert main(["requests", "export", "--output", str(folder / "events.json")]) == 0
    events = json.loads((folder / "events.json").read_text())["events"]
    assert [event["hash"] for event in events] == [event.hash for event in ledger.events()] and len(events) == 5

    assert main(["requests", "verify"]) == 0
    assert "nothing is wrong: 5 events, 1 parts" in capsys.readouterr().out
    (folder / "ledger" / "parts" / "REQ-1" / "README.md").write_text("changed")
    assert main(["requests", "verify", "--json"]) == 1
    assert [fault["file"] for fault in json.loads(capsys.readouterr().out)] == ["parts/REQ-1/README.md"]
    assert main(["requests", "verify"]) == 1
    assert capsys.readouterr().out == "parts/REQ-1/README.md: was changed\n"


MISTAKES = [
    (["add", "--id", "REQ-9"], "--forget is needed"),
    (["add", "--id", "a/b", "--forget", "0.jsonl"], "--id is 'a/b'; must be letters, digits"),
    (["add", "--id", "REQ-9", "--forget", "0.jsonl", "--scope", "acme"], "scope is 'acme'; must be as tenant=acme"),
    (["add", "--id", "REQ-9", "--forget", "0.jsonl", "--expires", "soon"], "expires is 'soon'; must be a day"),
    (["add", "--id", "REQ-9", "--forget", "0.jsonl", "--extend", "REQ-1"], "--extend is 'REQ-1'; must be a request that is"),
    (["add", "--id", "REQ-9", "--forget", "0.jsonl", "--at", "noon"], "--at is 'noon'; must be a time"),
    (["add", "--id", "REQ-9", "--forget", "0.jsonl", "--key-file", "none"], "the key file 'none' cannot be read"),
    (["revoke", "REQ-9"], "--why is needed"),
    (["revoke", "REQ-9", "--why", "\udcff"], "--why has half of a surrogate pair"),
    (["revoke", "REQ-9", "--why", "x"], "there is no request 'REQ-9'; there is none yet"),
    (["show", "REQ-9", "--ledger", "nowhere"], "'nowhere' has no ledger.sqlite"),
    (["covers"], "--records or --subject is needed"),
]


def test_mistakes_are_said(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    for words, said in MISTAKES:
        assert main(["requests", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_request_that_is_refused_loads_no_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(folder, 0, "--subject", PERSONS[0]) == 0
    shutil.rmtree(folder / "model")
    for number, said in ((0, "is there already"), (1, "request REQ-0 is about the same subject")):
        assert add(folder, number, "--subject", PERSONS[0]) == 2
        assert said in capsys.readouterr().err


def test_a_person_is_never_guessed(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("T3_ACTOR")
    assert add(folder, 0) == 2
    assert (
        "--by is needed: the person who does this; or name them in the environment variable T3_ACTOR" in capsys.readouterr().err
    )


def test_reading_and_revoking_load_no_model(folder: Path) -> None:
    assert add(folder, 0) == 0
    script = (
        "import sys; from tempertilt.cli import main\n"
        "for words in (['list'], ['revoke', 'REQ-0', '--why', 'x'], ['verify'], ['export'], ['show', 'REQ-0']):\n"
        "    assert main(['requests', *words]) == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_audit_of_the_requests_in_force_tells_their_history(folder: Path) -> None:
    assert add(folder, 0) == 0
    records = ["--forget", str(folder / "0.jsonl"), "--retain", str(folder / "retain.jsonl")]
    few = [
        "--records",
        "1",
        "--attempts",
        "1",
        "--draws",
        "0",
        "--unchanged",
        "1",
        "--max-new-tokens",
        "2",
        "--device",
        "cpu",
        "-q",
    ]
    page = folder / "report.html"
    assert main(["audit", "--ledger", str(folder / "ledger"), *records, *few, "--output", str(page)]) == 0
    figures = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [event["what"] for event in figures["request"]["history"]] == ["the ledger was made", "carried out: request REQ-0"]
    assert figures["before"]["n"] > 0 and figures["all"]["n"] > 5, figures["skipped"]
    text = page.read_text(encoding="utf-8")
    assert "dpo@example.org" in text and "carried out: request REQ-0" in text and "requests in force of the ledger" in text


def test_verify_audits_with_the_options_of_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A check after a change of the base model or of the server is one command."""
    assert add(folder, 0) == 0
    options, report = folder / "audit.yaml", folder / "again.html"
    few = "records: 1\nattempts: 1\ndraws: 0\nunchanged: 1\nmax_new_tokens: 2\n"
    options.write_text(f"forget: {folder / '0.jsonl'}\noutput: {report}\nfail_above: 0.0001\n{few}")
    capsys.readouterr()
    assert main(["requests", "verify", "--audit", str(options), "-q"]) == 1
    printed = capsys.readouterr()
    assert "nothing is wrong: 2 events" in printed.out and "above --fail-above 0.0001" in printed.err
    assert json.loads(report.with_suffix(".json").read_text())["all"]["n"] > 5
    assert main(["requests", "verify", "--audit", str(options), "--json"]) == 2
    options.write_text("fail_above: much\n")
    assert main(["requests", "verify", "--audit", str(options)]) == 2
    assert "fail_above is 'much'; must be a number" in capsys.readouterr().err
    (folder / "ledger" / "ledger.head").write_text("{}")
    report.unlink()
    assert main(["requests", "verify", "--audit", str(options)]) == 1 and not report.exists(), "what was changed is not audited"
