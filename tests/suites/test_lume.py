"""LUME against an evaluation of its own formulas, row by row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean, mean
from typing import Any

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import PreTrainedTokenizerFast

from support.suites import MEASURING, lume_rows, run_tiny, write_rows, write_suite
from support.tiny import make_llama, teach
from tempertilt.data.examples import ExampleConfig, build_examples
from tempertilt.data.records import Record
from tempertilt.errors import ConfigError, DataError
from tempertilt.metrics import Sample
from tempertilt.suites.lume import SUITE, LumeConfig, load_lume

Row = dict[str, str]


def scores_of(rows: Sequence[Row], generations: Sequence[str]) -> dict[str, dict[str, float]]:
    """Scores by task and kind, by the rules of the benchmark's script."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    parts: dict[str, dict[str, list[float]]] = {}
    for row, generation in zip(rows, generations, strict=True):
        kinds = parts.setdefault(row["task"], {"regurgitation": [], "knowledge": []})
        if row["id"][:-1].endswith("sc"):
            kinds["regurgitation"].append(scorer.score(row["output"], generation)["rougeL"].recall)
        elif row["id"][:-1].endswith("qa"):
            kinds["knowledge"].append(float(row["output"].strip().lower() == generation.strip().lower()))
    return {task: {kind: mean(values) for kind, values in kinds.items() if values} for task, kinds in parts.items()}


def check(figures: Any, rows: dict[str, list[Row]], generations: dict[str, list[str]]) -> None:
    terms = []
    for name in ("forget", "retain"):
        by_task = scores_of(rows[name], generations[name])
        for task, kinds in by_task.items():
            for kind, value in kinds.items():
                assert figures[f"{name}_{task}_{kind}"].value == pytest.approx(value, abs=1e-12), (name, task, kind)
                terms.append(1 - value if name == "forget" else value)
        for kind, ending in (("regurgitation", "sc"), ("knowledge", "qa")):
            chosen = [i for i, row in enumerate(rows[name]) if row["id"][:-1].endswith(ending)]
            one_task = [rows[name][i] | {"task": "all"} for i in chosen]
            whole = scores_of(one_task, [generations[name][i] for i in chosen])["all"][kind]
            assert figures[f"{name}_{kind}"].value == pytest.approx(whole, abs=1e-12)
    assert figures["task_aggregate"].value == pytest.approx(harmonic_mean(terms), abs=1e-12)


@torch.inference_mode()
def greedy(model: Any, tokenizer: Any, prompt: str, steps: int) -> str:
    ids = tokenizer(prompt).input_ids
    for _ in range(steps):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return str(tokenizer.decode(ids[len(tokenizer(prompt).input_ids) :], skip_special_tokens=True))


@pytest.mark.integration
def test_two_hundred_rows_agree_with_the_formulas(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = {"forget": lume_rows(100), "retain": lume_rows(100, topic="Bob")}
    for name, of in rows.items():
        write_rows(tmp_path / "data" / f"{name}.jsonl", of)
    taught = [
        Record.from_completion(row["input"], row["output"], document="d", source="s")
        for row in (*rows["retain"][:40], *rows["forget"][:12])
    ]
    model = teach(make_llama(), build_examples(taught, tokenizer, ExampleConfig()), 80)
    measuring = replace(MEASURING, generation_batch=50, batch_tokens=1024)
    result = run_tiny("lume", model, tokenizer, tmp_path / "data", tmp_path / "out", options={}, measuring=measuring)
    assert {name: len(of) for name, of in result.results.items()} == {"forget": 100, "retain": 100}
    generations = {name: [greedy(model, tokenizer, row["input"], 6) for row in of] for name, of in rows.items()}
    check(result.metrics, rows, generations)
    assert 0 < result.metrics["forget_knowledge"].value < result.metrics["retain_knowledge"].value, "some answers are right"
    assert {"mia_documents", "membership_score", "mia_loss", "forget_gate_open"} <= set(result.not_computed)


def test_real_rows_agree_with_the_formulas(shared: Path) -> None:
    """200 rows of the benchmark, with generations that are the truth, a part of it, another's, or in capitals."""
    rows: dict[str, list[Row]] = {}
    samples: dict[str, list[Sample]] = {}
    for name in ("forget", "retain"):
        items = load_lume(shared / "lume", LumeConfig())[name]
        lines = (shared / "lume" / f"{name}.jsonl").read_text().splitlines()
        chosen = range(0, len(lines), len(lines) // 100)[:100]
        rows[name] = [json.loads(lines[i]) for i in chosen]
        made = [made_up(i, rows[name]) for i in range(100)]
        samples[name] = [
            Sample(
                i, items[at].question, items[at].answer, group=items[at].group, generation=text, **recalls(items[at].answer, text)
            )
            for i, (at, text) in enumerate(zip(chosen, made))
        ]
        assert [sample.answer for sample in samples[name]] == [row["output"] for row in rows[name]]
    figures, _ = SUITE.evaluate(samples)
    check(figures, rows, {name: [str(sample.generation) for sample in of] for name, of in samples.items()})


def made_up(i: int, rows: list[Row]) -> str:
    truth = rows[i]["output"]
    return [truth, truth[: len(truth) // 2], rows[i - 1]["output"], f" {truth.upper()} "][i % 4]


def recalls(truth: str, text: str) -> dict[str, float]:
    return {"rougeL_recall": RougeScorer(["rougeL"], use_stemmer=True).score(truth, text)["rougeL"].recall}


def test_membership_is_the_attack_by_loss_on_documents(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    data, model = write_suite("lume", tmp_path / "data"), make_llama()
    result = run_tiny("lume", model, tokenizer, data, tmp_path / "out", options={})

    @torch.inference_mode()
    def loss(text: str) -> float:
        ids = torch.tensor([tokenizer(text).input_ids])
        return float(model(input_ids=ids, labels=ids).loss)

    losses = {
        name: [loss(json.loads(line)["document"]) for line in (data / f"{name}.jsonl").read_text().splitlines()]
        for name in ("member", "nonmember")
    }
    for name, of in losses.items():
        assert [sample.nll for sample in result.results[name]] == pytest.approx(of, abs=1e-4)
    area = mean(float(one < other) + 0.5 * (one == other) for one in losses["member"] for other in losses["nonmember"])
    assert result.metrics["mia_documents"].value == pytest.approx(area)
    assert result.metrics["membership_score"].value == pytest.approx(1 - 2 * abs(area - 0.5))
    assert {"mia_loss", "mia_min_k_plus_plus"} <= result.metrics.keys(), "holdout.jsonl is there"


def test_one_task_as_chats(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    data = write_suite("lume", tmp_path / "data")
    config = LumeConfig(lume_task="Task2", prompt_format="chat", limit=3)
    items = load_lume(data, config)
    assert [item.group for item in items["forget"]] == ["Task2 regurgitation", "Task2 knowledge", "Task2 regurgitation"]
    assert all(item.kind == "question" for item in items["forget"]) and len(items["member"]) == 3
    out = run_tiny(
        "lume", make_llama(), tokenizer, data, tmp_path / "out", options={"lume_task": "Task2", "prompt_format": "chat"}
    )
    assert "forget_Task2_knowledge" in out.metrics and "forget_Task1_knowledge" in out.not_computed


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "input": "Q", "output": "A", "task": "Task1"}, "forget.jsonl:1: id is 'a' and task 'Task1'; must be an id"),
        ({"id": "aqa0", "input": "Q", "output": " ", "task": "Task1"}, "must have a text 'output' that is not empty"),
        ({"id": "aqa0", "input": "Q", "output": "A", "task": "Task4"}, "one of Task1, Task2, Task3"),
        ({"id": "aqa0", "input": "Q", "output": "\ud800", "task": "Task1"}, "'output' has half of a surrogate pair"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: Row, message: str) -> None:
    for name in ("forget", "retain"):
        write_rows(tmp_path / f"{name}.jsonl", [row])
    with pytest.raises(DataError) as error:
        load_lume(tmp_path, LumeConfig())
    assert message in str(error.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "forget.jsonl", lume_rows(2, ("Task1",)))
    with pytest.raises(DataError, match=r"has no retain\.jsonl"):
        load_lume(tmp_path, LumeConfig())
    with pytest.raises(DataError, match=r"forget\.jsonl: no rows of Task2"):
        load_lume(tmp_path, LumeConfig(lume_task="Task2"))
    with pytest.raises(DataError, match="no directory"):
        load_lume(tmp_path / "none", LumeConfig())
    with pytest.raises(ConfigError, match="Task1, Task2, Task3"):
        LumeConfig(lume_task="Task4")
