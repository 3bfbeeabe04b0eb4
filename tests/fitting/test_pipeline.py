"""From records to an adapter on disk: reuse, refusal, kills at any point, and what the report says."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from support.tiny import question_rows
from support.warm import warm_processes
from tempertilt.data.batches import spread
from tempertilt.data.records import Record, RecordSets, check_records
from tempertilt.errors import AdapterError, ConfigError, TemperTiltError
from tempertilt.fitting.before_after import Likelihood, ReportConfig, Summary, greedy_answers, greedy_token_ids, likelihoods
from tempertilt.fitting.features import FeatureConfig
from tempertilt.fitting.fit_gate import GateConfig
from tempertilt.fitting.fit_head import FitConfig
from tempertilt.fitting.pipeline import REPORT, UnlearnConfig, unlearn
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.adapter import CARD, CONFIG, WEIGHTS
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.replies import ReplyConfig, make_reply
from tempertilt.models.t3 import T3ForCausalLM

CONFIGURATION = UnlearnConfig(
    features=FeatureConfig(batch_tokens=128),
    fit=FitConfig(rank=4, epochs=30),
    report=ReportConfig(report_records=4, show=1, max_new_tokens=5),
)


def make_sets(n: int = 12) -> RecordSets:
    def records(topic: str) -> list[Record]:
        rows = question_rows(n, topic)
        return [
            Record.from_question(row["question"], row["answer"], document=row["document"], source=f"{topic}.jsonl:{i + 1}")
            for i, row in enumerate(rows)
        ]

    return check_records(records("painter"), records("teacher"), records("sailor"))


@pytest.fixture()
def base(tiny_dir: Path) -> BaseModel:
    return load_base(str(tiny_dir))


FILES = sorted([CONFIG, WEIGHTS, CARD, REPORT, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])


def files(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in (CONFIG, WEIGHTS, CARD)}


def test_it_forgets_and_says_so(base: BaseModel, tmp_path: Path) -> None:
    result = unlearn(base, make_sets(), tmp_path / "out", CONFIGURATION, progress=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == base.tokenizer.get_vocab()
    assert result.fit is not None and result.fit.train.forget_accuracy > 0.9 and result.fit.train.retain_accuracy > 0.9
    assert set(result.changes.summaries) == {"forget", "retain", "holdout"} and result.changes.summaries["forget"].n == 4
    drop = {name: s.base_probability / s.unlearned_probability for name, s in result.changes.summaries.items()}
    assert drop["forget"] > 1.5 * drop["retain"]
    assert [item.set for item in result.changes.shown] == ["forget", "retain", "holdout"]
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["environment"]["packages"]["torch"] and report["fit"]["seconds"] > 0
    card = (tmp_path / "out" / CARD).read_text()
    assert "still hold the knowledge" in card and base.fingerprint in card and "`0.01`" in card
    again = T3ForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(3, 20)[None]
    assert torch.equal(again(input_ids=ids).logits, result.model(input_ids=ids).logits)


def test_the_same_request_is_reused_and_another_is_refused(base: BaseModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    unlearn(base, make_sets(), out, CONFIGURATION, progress=False)
    before = files(out)
    again = unlearn(base, make_sets(), out, CONFIGURATION, progress=False)
    assert again.reused and again.fit is None and files(out) == before
    for other in (
        replace(CONFIGURATION, tilt=TiltConfig(temperature=2.0)),
        replace(CONFIGURATION, fit=FitConfig(rank=5, epochs=30)),
    ):
        with pytest.raises(AdapterError, match="--overwrite"):
            unlearn(base, make_sets(), out, other, progress=False)
    with pytest.raises(AdapterError, match="--overwrite"):
        unlearn(base, make_sets(9), out, CONFIGURATION, progress=False)
    assert files(out) == before
    replaced = unlearn(base, make_sets(9), out, CONFIGURATION, overwrite=True, progress=False)
    assert not replaced.reused and files(out) != before


def test_a_reply_is_a_part_of_the_adapter(base: BaseModel, tmp_path: Path) -> None:
    text = "Of painters I say nothing."
    gate = GateConfig(gate=True, asked_threshold=0.1, false_open=0.9)
    report = ReportConfig(report_records=4, show=2, max_new_tokens=40)
    features = FeatureConfig(batch_tokens=128, pooling="last")
    config = replace(CONFIGURATION, features=features, gate=gate, reply=ReplyConfig(text), report=report)
    result = unlearn(base, make_sets(), tmp_path / "out", config, progress=False)
    again = T3ForCausalLM.from_pretrained(tmp_path / "out", base_model=base.model)
    assert again.reply is not None and again.reply.settings == make_reply(text, base.tokenizer, config.examples).settings  # type: ignore[union-attr]
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["training"]["config"]["reply"] == text
    forget = [item.after for item in result.changes.shown if item.set == "forget"]
    assert forget == [text] * 2
    with pytest.raises(AdapterError, match="other options"):
        unlearn(base, make_sets(), tmp_path / "out", replace(config, reply=ReplyConfig("No.")), progress=False)
    with pytest.raises(ConfigError, match=r"reply is 'No\.'; must be guess where there is no gate"):
        unlearn(base, make_sets(), tmp_path / "none", replace(CONFIGURATION, reply=ReplyConfig("No.")), progress=False)


def test_the_report_of_a_reused_adapter_says_how_it_was_made(base: BaseModel, tmp_path: Path) -> None:
    unlearn(base, make_sets(), tmp_path / "out", CONFIGURATION, progress=False)
    made = json.loads((tmp_path / "out" / REPORT).read_text())
    unlearn(base, make_sets(), tmp_path / "out", CONFIGURATION, progress=False)
    again = json.loads((tmp_path / "out" / REPORT).read_text())
    assert again["reused"] and made["fit"]["seconds"] > 0
    assert all(again[name] == made[name] for name in ("fit", "extraction", "likelihood"))
    (tmp_path / "out" / REPORT).unlink()  # as a kill leaves it that comes between the adapter and the report
    unlearn(base, make_sets(), tmp_path / "out", CONFIGURATION, progress=False)
    last = json.loads((tmp_path / "out" / REPORT).read_text())
    (tmp_path / "out" / REPORT).write_text("[1]")  # damaged
    unlearn(base, make_sets(), tmp_path / "out", CONFIGURATION, progress=False)
    assert json.loads((tmp_path / "out" / REPORT).read_text())["fit"] == last["fit"]
    assert last["fit"] == {name: value for name, value in made["fit"].items() if name not in ("seconds", "history")}


def test_pooled_features_do_not_serve_what_reads_the_present_state(base: BaseModel, tmp_path: Path) -> None:
    for other in (replace(CONFIGURATION, fit=FitConfig(objective="match")), replace(CONFIGURATION, gate=GateConfig(gate=True))):
        with pytest.raises(ConfigError, match="pooling is 'mean'; must be 'last'"):
            unlearn(base, make_sets(), tmp_path / "out", other, progress=False)


def test_a_directory_with_other_files_is_left_alone(base: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(AdapterError, match="thesis"):
        unlearn(base, make_sets(), tmp_path, CONFIGURATION, overwrite=True, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(TemperTiltError, match="is a file"):
        unlearn(base, make_sets(), tmp_path / "file", CONFIGURATION, progress=False)


def test_an_error_leaves_no_directory_behind(base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TemperTiltError("no")

    monkeypatch.setattr("tempertilt.fitting.pipeline.fit_head", fail)
    with pytest.raises(TemperTiltError):
        unlearn(base, make_sets(), tmp_path / "new" / "out", CONFIGURATION, progress=False)
    assert not (tmp_path / "new" / "out").exists()


def _stall(stage: str, tiny_dir: str, out: str, cache: str, mark: str) -> None:
    """Run the request and hang at `stage`, having touched `mark`."""
    os.environ["TEMPERTILT_CACHE"] = cache
    import tempertilt.fitting.fit_head
    import tempertilt.fitting.workers
    import tempertilt.models.adapter

    def hang() -> None:
        Path(mark).touch()
        time.sleep(600)

    if stage == "features":
        run, calls = tempertilt.fitting.workers.batch_features, []

        def batch(*args: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                hang()
            return run(*args)

        tempertilt.fitting.workers.batch_features = batch
    elif stage == "fit":
        loss, steps = tempertilt.fitting.fit_head.guidance_loss, []

        def slow(*args: Any) -> Any:
            steps.append(1)
            if len(steps) == 20:
                hang()
            return loss(*args)

        tempertilt.fitting.fit_head.guidance_loss = slow
    else:
        original = getattr(tempertilt.models.adapter, stage)

        def saving(work: Path, directory: Path, first: str, *_: str) -> None:
            original(work, directory, first)  # the weights are there, the configuration is not
            hang()

        setattr(tempertilt.models.adapter, stage, saving)
    torch.set_num_threads(1)
    unlearn(load_base(tiny_dir), make_sets(), Path(out), CONFIGURATION, progress=False)


@pytest.mark.integration
@pytest.mark.parametrize("stage", ["features", "fit", "move_files"])
def test_killed_anywhere_the_next_run_gives_the_same_adapter(tiny_dir: Path, tmp_path: Path, stage: str) -> None:
    undisturbed = tmp_path / "undisturbed"
    os.environ["TEMPERTILT_CACHE"] = str(tmp_path / "cache-a")
    unlearn(load_base(str(tiny_dir)), make_sets(), undisturbed, CONFIGURATION, progress=False)

    out, cache, mark = tmp_path / "killed", tmp_path / "cache-b", tmp_path / "mark"
    process = warm_processes().Process(target=_stall, args=(stage, *map(str, (tiny_dir, out, cache, mark))))
    process.start()
    deadline = time.monotonic() + 90
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert mark.exists()
    if stage == "move_files":  # all was written: loading puts the rest in place
        assert T3ForCausalLM.from_pretrained(out).head.rank and files(out) == files(undisturbed)
    else:
        with pytest.raises(AdapterError):
            T3ForCausalLM.from_pretrained(out)  # nothing half-written passes for an adapter

    os.environ["TEMPERTILT_CACHE"] = str(cache)
    result = unlearn(load_base(str(tiny_dir)), make_sets(), out, CONFIGURATION, progress=False)
    assert result.reused == (stage == "move_files") and files(out) == files(undisturbed)
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_likelihoods_and_recall_agree_with_a_direct_evaluation(base: BaseModel, tmp_path: Path) -> None:
    from tempertilt.data.examples import ExampleConfig, build_examples

    sets = make_sets()
    result = unlearn(base, sets, tmp_path / "out", CONFIGURATION, progress=False)
    examples = build_examples(sets.forget, base.tokenizer, ExampleConfig())
    scored = likelihoods(result.model, examples, batch_tokens=100)
    for example, seen in zip(examples, scored):
        ids = torch.from_numpy(example.input_ids).long()[None]
        with torch.no_grad():
            for logits, log_prob, recalled in (
                (base.model(input_ids=ids).logits, seen.base_log_prob, seen.base_recalled),
                (result.model(input_ids=ids).logits, seen.unlearned_log_prob, seen.unlearned_recalled),
            ):
                distribution = logits[0].double().log_softmax(-1)
                where = [i for i in range(len(example)) if example.scored[i]]
                expected = sum(float(distribution[i - 1, ids[0, i]]) for i in where) / len(where)
                assert log_prob == pytest.approx(expected, abs=1e-4)
                assert recalled == all(int(distribution[i - 1].argmax()) == int(ids[0, i]) for i in where)


def test_summary() -> None:
    items = [Likelihood(0.0, -1.0, True, False, 1), Likelihood(-2.0, -1.0, True, True, 1)]
    summary = Summary.of(items)
    assert summary.n == 2 and summary.base_recalled == 2 and summary.unlearned_recalled == 1
    assert summary.base_probability == pytest.approx((1 + 2.718281828**-2) / 2)


def test_spread_takes_items_from_all_over() -> None:
    assert spread(list(range(10)), 3) == [1, 5, 8] and spread([1, 2], 5) == [1, 2] and spread([1], 0) == []


def test_greedy_answers_do_not_depend_on_the_batch(base: BaseModel) -> None:
    prompts = [[3 + i for i in range(n)] for n in (5, 17, 2, 9)]
    together = greedy_token_ids(base.model, base.tokenizer, prompts, max_new_tokens=12, batch_size=4)
    for prompt, ids in zip(prompts, together):
        expected = list(prompt)
        for _ in range(12):
            with torch.no_grad():
                expected.append(int(base.model(input_ids=torch.tensor([expected])).logits[0, -1].argmax()))
            if expected[-1] == base.tokenizer.eos_token_id:
                break
        assert ids == expected[len(prompt) :]
    assert greedy_answers(base.model, base.tokenizer, prompts, max_new_tokens=12) == [
        base.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in together
    ]
