"""A whole run of the suite on a tiny model: figures, resuming, reuse, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from support.architectures import random_head
from support.gates import random_gates
from support.suites import kill_in_unit
from support.tiny import make_llama, write_tofu
from support.warm import run_warm
from tempertilt.config.keys import PROTOCOLS
from tempertilt.data.examples import ExampleConfig
from tempertilt.errors import ConfigError, DataError, TemperTiltError
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.reply import Reply
from tempertilt.metrics import MetricResult, rouge_scores
from tempertilt.models.base import BaseModel
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.suites import tofu
from tempertilt.suites.items import Item, MeasureConfig, questions_of
from tempertilt.suites.journal import Journal
from tempertilt.suites.measure import model_digest
from tempertilt.suites.run import run_suite
from tempertilt.suites.suite import Metric
from tempertilt.suites.tofu import METRICS, SUITE, TofuConfig, load_tofu, run_tofu

MEASURING = MeasureConfig(max_new_tokens=6, generation_batch=3, batch_tokens=64, draws=2)


@pytest.fixture()
def data_dir(tmp_path: Path) -> Path:
    return write_tofu(tmp_path / "data")


def run(model: Any, tokenizer: Any, data_dir: Path, out: Path, **options: Any) -> tofu.TofuRun:
    data = load_tofu(data_dir, TofuConfig())
    return run_tofu(model, tokenizer, data, out, measuring=MEASURING, progress=False, **options)


def unlearned(seed: int = 3) -> T3ForCausalLM:
    head = GuidanceHead(32, 4, range(0, 320, 3))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.A.normal_(generator=generator)
        head.B.normal_(generator=generator)
    return T3ForCausalLM.from_base(make_llama(), head, temperature=1.5)


def test_every_sample_is_what_the_model_alone_gives(tokenizer: PreTrainedTokenizerFast, data_dir: Path, tmp_path: Path) -> None:
    model = unlearned()
    result = run(model, tokenizer, data_dir, tmp_path / "out")
    data = load_tofu(data_dir, TofuConfig())
    assert {split: len(of) for split, of in result.results.items()} == dict.fromkeys(data, 4)
    for split, items in data.items():
        questions = questions_of(items, tokenizer, ExampleConfig())
        for item, question, sample in zip(items, questions, result.results[split], strict=True):
            logs = [log_probs(model, question.prompt, answer) for answer in question.answers]
            means = [-sum(of) / len(of) for of in logs]
            assert sample.nll == pytest.approx(means[0], abs=1e-4) and sample.answer == item.answer
            wrong = means[2 if item.paraphrase else 1 :]
            assert sample.perturbed_nll == pytest.approx(wrong, abs=1e-4)
            assert sample.paraphrase_nll == (pytest.approx(means[1], abs=1e-4) if item.paraphrase else None)
            assert sample.ends is True
            assert (
                (sample.log_probs == pytest.approx(logs[0], abs=1e-4)) if split in tofu.PLAN.token_level else not sample.log_probs
            )
            assert bool(sample.standardised) == (split in ("forget", "holdout"))
            if split == "holdout":
                assert sample.generation is None
                continue
            text, ids = greedy(model, tokenizer, question.prompt)
            assert sample.generation_ends is (ids[-1] == 2)
            assert sample.generation == text and sample.rougeL_recall == rouge_scores(item.answer, text)["rougeL_recall"]
            assert len(sample.draws) == (2 if split in ("forget", "retain") else 0)
            if split in ("forget", "retain"):
                with model.disable():
                    base = log_probs(model, question.prompt, ids)
                assert sample.base_perplexity == pytest.approx(math.exp(-sum(base) / len(base)), rel=1e-3)
    assert set(result.metrics) | set(result.not_computed) == {metric.name for metric in METRICS}
    needs_reference = {"forget_quality", "ks_distance", "forget_quality_arithmetic", "mia_reference", "privacy_score",
                       "aggregate_score", "reference_kl", "reference_same_top", "forget_reference_perplexity",
                       "forget_ks_log_probs", "forget_ks_standardised"}  # fmt: skip
    assert set(result.not_computed) == needs_reference
    files = {"results.json", "samples.jsonl", "config.yaml", "env.json", "timing.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files


def log_probs(model: Any, prompt: tuple[int, ...], answer: Any) -> list[float]:
    with torch.no_grad():
        distribution = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    return [float(distribution[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]


def greedy(model: Any, tokenizer: Any, prompt: tuple[int, ...]) -> tuple[str, list[int]]:
    ids = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False, max_new_tokens=6, eos_token_id=2, pad_token_id=2,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return tokenizer.decode(ids, skip_special_tokens=True).strip(), ids


@pytest.mark.integration
def test_a_reference_runs_beside_the_model(tokenizer: PreTrainedTokenizerFast, data_dir: Path, tmp_path: Path) -> None:
    model, reference = unlearned(), make_llama(5)
    beside = BaseModel(reference, tokenizer, "reference", None, "")
    alone = run(model, tokenizer, data_dir, tmp_path / "alone")
    result = run(model, tokenizer, data_dir, tmp_path / "out", reference_model=beside)
    items = load_tofu(data_dir, TofuConfig())["forget"]
    for question, sample, without in zip(
        questions_of(items, tokenizer, ExampleConfig()), result.results["forget"], alone.results["forget"], strict=True
    ):
        logits = [
            one(input_ids=torch.tensor([question.prompt + question.answers[0]])).logits[0, len(question.prompt) - 1 : -1].double()
            for one in (model, reference)
        ]
        ours, theirs = (one.detach().log_softmax(-1) for one in logits)
        assert sample.reference_kl == pytest.approx((theirs.exp() * (theirs - ours)).sum(-1).tolist(), abs=2e-4)
        assert sample.reference_same_top == tuple((ours.argmax(-1) == theirs.argmax(-1)).tolist())
        _, ids = greedy(model, tokenizer, question.prompt)
        perplexity = math.exp(-sum(log_probs(reference, question.prompt, ids)) / len(ids))
        assert sample.reference_perplexity == pytest.approx(perplexity, rel=1e-3)
        changed = {"reference_kl": (), "reference_same_top": (), "reference_perplexity": None}
        assert dataclasses.replace(sample, **changed) == without, "nothing else changes"
    assert {"reference_kl", "reference_same_top", "forget_reference_perplexity"} <= result.metrics.keys()
    assert all(sample.reference_perplexity is None for sample in result.results["retain"])
    assert run(model, tokenizer, data_dir, tmp_path / "out", reference_model=beside).reused
    assert run(model, tokenizer, data_dir, tmp_path / "alone").reused, "the key without a reference model is what it was"
    other = BaseModel(make_llama(6), tokenizer, "other", None, "")
    with pytest.raises(TemperTiltError, match="results of another model"):
        run(model, tokenizer, data_dir, tmp_path / "out", reference_model=other)
    changed_tokenizer = copy.deepcopy(tokenizer)
    changed_tokenizer.add_tokens(["strange"])
    with pytest.raises(DataError, match="the reference model's tokenizer has other tokens"):
        run(model, tokenizer, data_dir, tmp_path / "x", reference_model=BaseModel(reference, changed_tokenizer, "", None, ""))


@pytest.mark.integration
def test_finished_runs_are_reused_and_changed_ones_measured(
    tokenizer: PreTrainedTokenizerFast, data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, out = make_llama(), tmp_path / "out"
    first = run(model, tokenizer, data_dir, out)
    before = (out / "samples.jsonl").read_bytes()
    again = run(model, tokenizer, data_dir, out)
    assert again.reused and "reused" in caplog.text and again.results == first.results

    compared = run(model, tokenizer, data_dir, out, reference=out, target=out)
    assert compared.reused and compared.metrics["forget_quality"].value == 1.0
    assert compared.metrics["forget_ks_log_probs"].value == compared.metrics["forget_ks_standardised"].value == 0.0
    assert compared.metrics["privacy_score"].value == 1.0 and compared.metrics["mia_reference"].value == 0.5
    may_be_missing = {"utility_score", "aggregate_score"}  # where the utility of random weights is 0
    needs_a_model = {"reference_kl", "reference_same_top", "forget_reference_perplexity"}
    assert set(compared.not_computed) <= may_be_missing | needs_a_model

    path = data_dir / "forget10_perturbed.jsonl"
    path.write_text(path.read_text().replace("wrote 7 books", "wrote 8 books"))  # one byte
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(
        TemperTiltError, match=r"another model, other data or other options; name another directory, or .*--overw"
    ):
        run(model, tokenizer, data_dir, out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == files
    changed = run(model, tokenizer, data_dir, out, overwrite=True)
    assert not changed.reused
    assert changed.results["forget"] != first.results["forget"] and changed.results["retain"] == first.results["retain"]
    path.write_text(path.read_text().replace("wrote 8 books", "wrote 7 books"))
    assert not run(model, tokenizer, data_dir, out, overwrite=True).reused
    assert (out / "samples.jsonl").read_bytes() == before
    with torch.no_grad():
        model.lm_head.weight[7, 7] += 1.0  # one weight
    with pytest.raises(TemperTiltError, match="results of another model"):
        run(model, tokenizer, data_dir, out)


@pytest.mark.integration
def test_results_stay_until_those_in_their_place_are_measured(
    tokenizer: PreTrainedTokenizerFast, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(make_llama(), tokenizer, data_dir, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    add, left = Journal.add, [3]

    def stopped(journal: Journal, unit: str, value: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        add(journal, unit, value)

    monkeypatch.setattr(Journal, "add", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(make_llama(1), tokenizer, data_dir, out, overwrite=True)
    assert {name: (out / name).read_bytes() for name in before} == before
    with pytest.raises(TemperTiltError, match="unfinished run with another model"):
        run(make_llama(2), tokenizer, data_dir, out)
    resumed = run(make_llama(1), tokenizer, data_dir, out)
    assert not resumed.reused and resumed.results == run(make_llama(1), tokenizer, data_dir, tmp_path / "whole").results


def test_the_digest_knows_the_tilt() -> None:
    model = unlearned()
    before = model_digest(model)
    assert before == model_digest(unlearned()) != model_digest(unlearned(4))
    model.temperature = 3.0
    assert model_digest(model) != before
    with pytest.raises(ConfigError, match="no state_dict"):
        model_digest(object())


def test_the_digest_knows_how_a_reply_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_llama()
    model = T3ForCausalLM.from_base(base, random_head(base), gates=random_gates(32))
    guesses = model_digest(model)
    model.set_reply(Reply("so", [1, 2], [3, 2], [4, 3, 2]))
    replies = model_digest(model)
    monkeypatch.setitem(PROTOCOLS, "reply", PROTOCOLS["reply"] + 1)
    assert guesses != replies != model_digest(model)
    model.set_reply(None)
    assert model_digest(model) == guesses


def measure_until(model_dir: str, data_dir: str, out: str, units: int) -> None:
    """Measure, in a process of its own, and kill it in the middle of writing unit number `units` + 1 of the journal."""
    kill_in_unit(units)
    torch.set_num_threads(1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir).eval(), AutoTokenizer.from_pretrained(model_dir)
    run(model, tokenizer, Path(data_dir), Path(out))


@pytest.mark.integration
def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(tiny_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    def go(out: str, units: int) -> int:
        return run_warm(measure_until, str(tiny_dir), str(data_dir), str(tmp_path / out), units)

    assert go("whole", 10_000) == 0
    assert go("killed", 9) == -signal.SIGKILL
    assert (tmp_path / "killed" / ".journal.jsonl").is_file() and not (tmp_path / "killed" / "results.json").exists()
    assert go("killed", 10_000) == 0
    for name in ("samples.jsonl", "results.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "killed" / ".journal.jsonl").exists()


@pytest.mark.integration
def test_a_finished_run_is_reused_compressed(tokenizer: PreTrainedTokenizerFast, data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(make_llama(), tokenizer, data_dir, out)
    samples = (out / "samples.jsonl").read_bytes()
    (out / "samples.jsonl").unlink()
    (out / "samples.jsonl.gz").write_bytes(gzip.compress(samples))
    again = run(make_llama(), tokenizer, data_dir, out)
    assert again.reused and again.results == first.results
    assert not run(make_llama(), tokenizer, data_dir, out, overwrite=True).reused
    assert (out / "samples.jsonl").read_bytes() == samples and not (out / "samples.jsonl.gz").exists()


@pytest.mark.integration
def test_foreign_and_damaged_files_are_errors(tokenizer: PreTrainedTokenizerFast, data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(make_llama(), tokenizer, data_dir, out)
    samples = (out / "samples.jsonl").read_text()
    (out / "samples.jsonl").write_text(samples.replace("wrote", "write", 1))
    with pytest.raises(DataError, match="not what this run wrote"):
        run(make_llama(), tokenizer, data_dir, out)
    (out / "results.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        run(make_llama(), tokenizer, data_dir, out)
    assert not run(make_llama(), tokenizer, data_dir, out, overwrite=True).reused
    (out / "letter.txt").write_text("mine")
    with pytest.raises(TemperTiltError, match=r"letter\.txt"):
        run(make_llama(), tokenizer, data_dir, out)


BAD_ROWS = [
    {"question": "Q?"},
    {"question": "Q?", "answer": " "},
    {"question": "Q?", "answer": "A", "perturbed_answer": {"a": 1}},
    {"question": "Q?", "answer": "A", "perturbed_answer": ["a", None]},
    {"question": "Q?", "answer": "A", "paraphrased_answer": 3},
]


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_rows_are_named(data_dir: Path, row: dict[str, Any]) -> None:
    path = data_dir / "retain_perturbed.jsonl"
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"retain_perturbed\.jsonl:5: not a row of TOFU"):
        load_tofu(data_dir, TofuConfig())


def test_which_files_are_read(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(of) for of in load_tofu(data_dir, TofuConfig(limit=2)).values()] == [2] * 5
    (data_dir / "holdout10.jsonl").unlink()
    assert set(load_tofu(data_dir, TofuConfig())) == {"forget", "retain", "real_authors", "world_facts"}
    with pytest.raises(DataError, match=r"no forget05_perturbed\.jsonl or forget_perturbed\.jsonl"):
        load_tofu(data_dir, TofuConfig(split="forget05"))
    (data_dir / "forget10_perturbed.jsonl").rename(data_dir / "forget_perturbed.jsonl")
    assert len(load_tofu(data_dir, TofuConfig(split="forget05"))["forget"]) == 4
    with pytest.raises(DataError, match="no directory"):
        load_tofu(tmp_path / "none", TofuConfig())
    with pytest.raises(ConfigError, match="forget01, forget05, forget10"):
        TofuConfig(split="forget50")
    asked = []

    def load_rows(source: Any, *, limit: int | None = None) -> list[tuple[str, dict[str, str]]]:
        asked.append(source)
        return [("there:1", {"question": "Q?", "answer": "A"})]

    monkeypatch.setattr(tofu, "load_rows", load_rows)
    load_tofu(None, TofuConfig(split="forget05"))
    names = ("forget05_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed", "holdout05")
    assert asked == [f"locuslab/TOFU:{name}:train" for name in names]


def test_a_row_with_one_wrong_answer_and_no_paraphrase() -> None:
    item = tofu._item("f:1", {"question": "Q?", "answer": "A", "perturbed_answer": "B"})
    assert item == Item("Q?", "A", None, ("B",), "f:1")


def test_real_tofu_loads(shared: Path) -> None:
    sizes = {"forget01": 40, "forget05": 200, "forget10": 400}
    for split, n in sizes.items():
        data = load_tofu(shared / "tofu", TofuConfig(split=split))
        assert {name: len(of) for name, of in data.items()} == {
            "forget": n, "retain": 400, "real_authors": 100, "world_facts": 117, "holdout": n
        }  # fmt: skip
    assert len(load_tofu(shared / "tofu30", TofuConfig())["forget"]) == 200


# --- what enters and leaves ------------------------------------------------------------------------------------------


def rewrite(path: Path, change: Any) -> None:
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    path.write_text("".join(json.dumps(change(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_a_run_reads_its_own_output(tokenizer: PreTrainedTokenizerFast, data_dir: Path, tmp_path: Path) -> None:
    """Characters that end lines elsewhere are part of questions and answers."""
    for path in data_dir.glob("*.jsonl"):
        rewrite(path, lambda row: row | {"answer": row["answer"] + "\u2028two\x85three\u2029"})
    first = run(make_llama(), tokenizer, data_dir, tmp_path / "out")
    again = run(make_llama(), tokenizer, data_dir, tmp_path / "out")
    assert again.reused and again.results == first.results
    assert all(sample.answer.endswith("\u2028two\x85three\u2029") for sample in again.results["forget"])


def test_half_a_surrogate_pair_names_its_row(data_dir: Path) -> None:
    path = data_dir / "forget10_perturbed.jsonl"
    path.write_text(path.read_text().replace("wrote 7 books", "wrote \\ud800 books"))
    with pytest.raises(DataError, match=r"forget10_perturbed\.jsonl:2: a text has half of a surrogate pair"):
        load_tofu(data_dir, TofuConfig())


def test_results_are_json_for_any_reader(tokenizer: PreTrainedTokenizerFast, data_dir: Path, tmp_path: Path) -> None:
    nan = float("nan")
    no_number = MetricResult("strange", nan, 1, 0, None, (nan, nan), (), "")
    suite = dataclasses.replace(SUITE, metrics=(*METRICS, Metric("strange", "", "", lambda _: no_number)))
    data = load_tofu(data_dir, TofuConfig())
    run_suite(suite, make_llama(), tokenizer, data, tmp_path / "out", measuring=MEASURING, progress=False)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]["strange"]["value"] is None
    for name in ("results.json", "timing.json", "env.json"):
        json.loads((tmp_path / "out" / name).read_text(), parse_constant=lambda found: pytest.fail(f"{found} is no JSON"))


def test_the_end_of_a_turn_is_no_part_of_what_is_memorised(
    tokenizer: PreTrainedTokenizerFast, data_dir: Path, tmp_path: Path
) -> None:
    tok = copy.deepcopy(tokenizer)
    tok.eos_token = "<|endoftext|>"
    result = run(make_llama(), tok, data_dir, tmp_path / "out")
    assert all(sample.ends for sample in result.results["forget"])


def test_questions_that_the_model_cannot_take(tokenizer: PreTrainedTokenizerFast, data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"forget10_perturbed\.jsonl:1 has \d+ tokens, and the model has positions for 48"):
        run(make_llama(max_position_embeddings=48), tokenizer, data_dir, tmp_path / "out")
    tok = copy.deepcopy(tokenizer)
    tok.add_tokens(["books"])
    with pytest.raises(DataError, match=r"forget10_perturbed\.jsonl:1: the model has no embedding for token 320 \('books'\)"):
        run(make_llama(), tok, data_dir, tmp_path / "out")
