"""The diagnosis of `t3 unlearn --theory`: its likelihoods and log-odds against a direct evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from support.tiny import question_rows
from tempertilt.cli import main
from tempertilt.cli.unlearn import _diagnosis
from tempertilt.data.examples import ExampleConfig, build_examples
from tempertilt.data.records import Record, check_records
from tempertilt.fitting.before_after import ReportConfig
from tempertilt.fitting.features import Features, FeatureStore
from tempertilt.fitting.fit_head import FitConfig, fit_head, split_documents
from tempertilt.fitting.pipeline import UnlearnConfig, unlearn
from tempertilt.fitting.store import write_shard
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.base import load_base
from tempertilt.theory import Sides, diagnose_adapter


def stored(directory: Path) -> tuple[Features, Features]:
    rng, store, classes = np.random.default_rng(0), FeatureStore(directory), []
    for name, sign in (("retain", 1), ("forget", -1)):
        lengths = rng.integers(2, 6, 12).tolist()
        keys, total = [f"{name}-{i}" for i in range(12)], sum(lengths)
        features = rng.normal(size=(total, 8)) + sign
        write_shard(directory, name, keys, lengths, torch.tensor(features).float(), torch.tensor(rng.integers(0, 9, total)).int())
        store.refresh()
        classes.append(Features(store, keys, [f"{name}-{i // 3}" for i in range(12)]))
    return classes[0], classes[1]


def test_held_out_log_odds_are_those_of_a_head_that_never_saw_the_documents(tmp_path: Path) -> None:
    retain, forget = stored(tmp_path)
    config = FitConfig(rank=3, epochs=12, held_out_fraction=0.3)
    found = fit_head(retain, forget, config, progress=False).held_out_log_odds
    split = split_documents(retain, forget, config)
    assert found is not None and split is not None
    (kept_retain, kept_forget), held_out = split
    head = fit_head(kept_retain, kept_forget, FitConfig(rank=3, epochs=12, held_out_fraction=0.0), progress=False).head
    for features, values in zip(held_out, found):
        assert len(values) == len(features) == 3
        for i, value in enumerate(values):
            rows, targets = features.gather([i])
            with torch.no_grad():
                score = head.score(head.project(rows[-1:]), head.rows_of(targets[-1:]))
            assert value == pytest.approx(float(score), abs=1e-5)
    alone = FitConfig(rank=3, epochs=2, held_out_fraction=0.0)
    assert fit_head(retain, forget, alone, progress=False).held_out_log_odds is None


def test_the_pipeline_diagnoses_what_it_measured(tiny_dir: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_dir))
    records = [
        [
            Record.from_question(row["question"], row["answer"], document=row["document"], source="x")
            for row in question_rows(9, of)
        ]
        for of in ("painter", "teacher")
    ]
    config = UnlearnConfig(
        fit=FitConfig(rank=3, epochs=4), tilt=TiltConfig(2.0, 0.5, 0.3), report=ReportConfig(report_records=50, show=0)
    )
    result = unlearn(base, check_records(records[0], records[1]), tmp_path / "out", config, progress=False)
    totals = []
    for of in records:
        totals.append([])
        for example in build_examples(of, base.tokenizer, ExampleConfig()):
            ids = torch.tensor(example.input_ids)
            with torch.no_grad():
                log_p = base.model(ids[None]).logits[0].log_softmax(-1)
            scored = np.flatnonzero(example.scored)
            totals[-1].append(sum(float(log_p[t - 1, ids[t]]) for t in scored))
    assert result.fit is not None and result.fit.held_out_log_odds is not None
    diagnosis = _diagnosis(result, config)
    assert diagnosis is not None
    direct = diagnose_adapter(
        Sides(totals[1], totals[0]), Sides(*result.fit.held_out_log_odds), temperature=2.0, guidance_scale=0.5, forget_prior=0.3
    )
    for name in ("concentration_gap", "log_p_bar", "retain_bias_in_use", "delta_estimate", "recommended_temperature"):
        assert getattr(diagnosis, name) == pytest.approx(getattr(direct, name), rel=1e-4), name
    assert not diagnosis.covered and "scaled by 0.5" in diagnosis.sentence
    again = unlearn(base, check_records(records[0], records[1]), tmp_path / "out", config, progress=False)
    assert again.reused and _diagnosis(again, config) is None


def test_the_command_shows_it(tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for topic in ("painter", "teacher"):
        files.append(tmp_path / f"{topic}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in question_rows(8, topic)))
    flags = [
        "--model",
        str(tiny_dir),
        "--forget",
        str(files[0]),
        "--retain",
        str(files[1]),
        "--rank",
        "2",
        "--epochs",
        "2",
        "--method",
        "t3-paper",
    ]
    options = ["--show", "0", "--quiet", "--output-dir", str(tmp_path / "out")]
    assert main(["unlearn", *flags, *options, "--theory"]) == 0
    out = capsys.readouterr().out
    assert "theory       excess risk of the head" in out and "outside what the theory covers" in out
    assert max(map(len, out.splitlines())) <= 200
    assert main(["unlearn", *flags, *options]) == 0
    assert "excess risk" not in capsys.readouterr().out
    assert main(["unlearn", *flags, *options[:-1], str(tmp_path / "no"), "--held-out-fraction", "0"]) == 0
    assert "theory" not in capsys.readouterr().out
