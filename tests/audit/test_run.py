"""An audit: what a kill leaves, and that nothing of the records is written where it should not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from support.audits import FORGET, HOLDOUT, PEOPLE, RETAIN, Scripted, subjects
from tempertilt.audit.attempts import Attempt
from tempertilt.audit.page import Request, to_html
from tempertilt.audit.run import Audit, AuditConfig, Sources, run_audit
from tempertilt.audit.summary import summarise
from tempertilt.audit.target import Target
from tempertilt.audit.texts import read_letter
from tempertilt.data.facts import given_away
from tempertilt.data.record import Record
from tempertilt.errors import DataError

SMALL = AuditConfig(records=2, attempts=3, draws=2, unchanged=2, max_new_tokens=4, audit_batch=2)


def audit(model: Any, tokenizer: Any, path: Path, config: AuditConfig = SMALL, **options: Any) -> Audit:
    sources = Sources(FORGET, RETAIN, HOLDOUT)
    path.mkdir(exist_ok=True)
    return run_audit(model, tokenizer, sources, config, path / ".journal.jsonl", progress=False, **options)


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_killed_run_goes_on_and_gives_the_same(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = audit(llama, tokenizer, tmp_path / "whole")
    asked = Target.ask
    calls: list[str] = []

    def killed(self: Target, attempts: list[Attempt], seed: str) -> Any:
        calls.append(seed)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return asked(self, attempts, seed)

    monkeypatch.setattr(Target, "ask", killed)
    with pytest.raises(KeyboardInterrupt):
        audit(llama, tokenizer, tmp_path / "killed")
    journal = tmp_path / "killed" / ".journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"unit": "half a li')  # a kill in the middle of a line
    again = audit(llama, tokenizer, tmp_path / "killed")
    seeds = [seed for seed in calls if seed != "collateral"]
    assert len(seeds) - len(set(seeds)) <= 1  # the one that was under way
    assert again.attacks == whole.attacks and again.effects == whole.effects and again.signals == whole.signals


def test_a_plain_model_has_no_before(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    result = audit(llama, tokenizer, tmp_path)
    assert not result.before and all(effect.changed is None for found in result.effects.values() for effect in found)
    why = {s.kind: s.why for s in result.skipped}
    assert why["8-bit base"] == "only tried for an adapter on a CPU" and "own wordings" in why
    assert summarise(result)["all"]["n"] == sum(len(found) for found in result.attacks.values())


def test_records_without_facts_of_their_own_are_an_error(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    yes = Record.from_question("Is it so?", "It is so.", document="", source="")
    with pytest.raises(DataError, match="none of the 1 forget records"):
        run_audit(llama, tokenizer, Sources([yes]), SMALL, tmp_path / "j", progress=False)


# --- where values may stand ------------------------------------------------------------------------------------------

SECRETS = [fact for s in subjects() for fact in s.facts if fact.kind != "wording"]


def tell_everything(attempt: Attempt) -> str:
    return "; ".join(
        f"{name}, {' '.join(values)}, {values[1].upper()}, {values[0].replace(' ', '-')}" for name, values in PEOPLE.items()
    )


@pytest.mark.parametrize("show_values", [False, True])
def test_values_stand_in_the_report_that_was_asked_for_and_nowhere_else(
    llama: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    show_values: bool,
) -> None:
    Scripted(tell_everything).install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    result = audit(llama, tokenizer, tmp_path, show_values=show_values)
    assert all(j.leaked for name, found in result.attacks.items() for j in found if name != "prefix forcing")
    summary = summarise(result)
    page, figures = to_html(summary, Request(), read_letter(None)), json.dumps(summary)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in written] == [".journal.jsonl"]
    journal = written[0].read_text(encoding="utf-8")
    printed = capfd.readouterr()
    assert (
        bool(given_away(SECRETS, page)) == bool(given_away(SECRETS, figures)) == bool(given_away(SECRETS, journal)) == show_values
    )
    assert not given_away(SECRETS, printed.out + printed.err + caplog.text)
    names = [name.lower() for name in list(PEOPLE)[:2]]
    assert any(name in page.lower() for name in names) == show_values
    assert any(name in journal.lower() for name in names) == show_values


def test_long_prompts_are_asked_a_few_at_a_time(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempertilt.audit.run.BATCH_TOKENS", 200)
    sizes: list[list[int]] = []
    asked = Target.ask

    def recorded(self: Target, attempts: list[Attempt], seed: str) -> Any:
        if seed != "collateral":
            sizes.append([len(self.encode(attempt)) for attempt in attempts])
        return asked(self, attempts, seed)

    monkeypatch.setattr(Target, "ask", recorded)
    result = audit(llama, tokenizer, tmp_path, AuditConfig(records=3, attempts=9, draws=0, unchanged=0, max_new_tokens=4))
    assert all(len(lengths) == 1 or len(lengths) * max(lengths) <= 200 for lengths in sizes)
    assert sum(map(len, sizes)) == sum(map(len, result.attacks.values())) and max(map(len, sizes)) > 1
