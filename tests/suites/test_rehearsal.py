"""Rehearsal: the base stays as it is, the figures are those of a direct evaluation, a result is used again."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.tiny import question_rows
from tempertilt.cli import main
from tempertilt.data.examples import ExampleConfig, build_examples
from tempertilt.data.records import Record, RecordSets, check_records
from tempertilt.errors import DataError
from tempertilt.fitting.before_after import ReportConfig
from tempertilt.fitting.features import FeatureConfig
from tempertilt.fitting.fit_gate import GateConfig
from tempertilt.fitting.fit_head import FitConfig
from tempertilt.fitting.pipeline import UnlearnConfig, unlearn
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.adapter import CONFIG as CONFIG_FILE
from tempertilt.models.adapter import WEIGHTS
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.storage import cache_dir
from tempertilt.suites import rehearsal as module
from tempertilt.suites.rehearsal import (
    Rehearsal,
    RehearsalConfig,
    choose_records,
    distances,
    rehearse,
    split_documents,
    teach,
    token_figures,
    try_scales,
)

CONFIG = UnlearnConfig(
    features=FeatureConfig(batch_tokens=256, pooling="last"),
    fit=FitConfig(objective="match", rank=4, match_steps=20),
    tilt=TiltConfig(temperature=1.0, guidance_scale=1.0, forget_prior=1.0),
    gate=GateConfig(gate=False),
    report=ReportConfig(report_records=2, show=0, answer_records=2, hearing_records=0, max_new_tokens=6),
)
OPTIONS = RehearsalConfig(rehearse_records=6, rehearse_answers=3, rehearse_epochs=2)


def records(topic: str, n: int = 12) -> list[Record]:
    rows = question_rows(n, topic)
    return [
        Record.from_question(row["question"], row["answer"], document=row["document"], source=f"{topic}.jsonl:{i + 1}")
        for i, row in enumerate(rows)
    ]


@pytest.fixture()
def base(tiny_dir: Path) -> BaseModel:
    return load_base(str(tiny_dir))


@pytest.fixture()
def sets() -> RecordSets:
    return check_records(records("painter"), records("teacher"))


def guided(base: BaseModel) -> T3ForCausalLM:
    """A tilted model with a head of random weights."""
    torch.manual_seed(3)
    ids = torch.arange(3, 200)
    head = GuidanceHead(hidden_size=32, rank=4, token_ids=ids)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return T3ForCausalLM.from_base(
        base.model, head, temperature=1.3, guidance_scale=0.8, pooling="last", base_fingerprint=base.fingerprint
    )


# --- the base ------------------------------------------------------------------------------------------------------------


def test_the_base_is_left_bit_for_bit(base: BaseModel, sets: RecordSets) -> None:
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    modules = [(name, type(part)) for name, part in base.model.named_modules()]
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in base.model.modules()]
    rehearse(base, sets, CONFIG, OPTIONS, records=records("sailor"), progress=False)
    after = base.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name].view(torch.uint8), weight.view(torch.uint8)) for name, weight in before.items())
    assert [(name, type(part)) for name, part in base.model.named_modules()] == modules
    assert [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in base.model.modules()] == hooks
    assert not any(parameter.requires_grad for parameter in base.model.parameters()) and not base.model.training
    assert not hasattr(base.model, "peft_config")


@pytest.mark.integration
def test_the_copy_knows_what_it_was_taught(base: BaseModel) -> None:
    examples = build_examples(records("sailor", 4), base.tokenizer, ExampleConfig())
    taught = teach(base, examples, [], RehearsalConfig(rehearse_epochs=60))
    assert taught.fingerprint != base.fingerprint and taught.model is not base.model

    def nll(model: Any) -> float:
        values = []
        for example in examples:
            ids = torch.tensor(example.input_ids)[None]
            with torch.no_grad():
                log_p = model(ids).logits[0].log_softmax(-1)
            values += [-float(log_p[t - 1, ids[0, t]]) for t in np.flatnonzero(example.scored)]
        return float(np.mean(values))

    assert nll(taught.model) < 0.5 * nll(base.model)


@pytest.mark.integration
def test_what_follows_is_the_same_with_and_without_a_rehearsal(base: BaseModel, sets: RecordSets, tmp_path: Path) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    rehearsed = rehearse(base, sets, CONFIG, OPTIONS, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    unlearn(base, sets, tmp_path / "with", CONFIG, progress=False, rehearsal=rehearsed.report())
    unlearn(load_base(base.name), sets, tmp_path / "without", CONFIG, progress=False)
    assert (tmp_path / "with" / WEIGHTS).read_bytes() == (tmp_path / "without" / WEIGHTS).read_bytes()


# --- the figures ---------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_a_direct_evaluation(base: BaseModel, tiny_dir: Path) -> None:
    examples = build_examples(records("sailor", 7), base.tokenizer, ExampleConfig())
    others = build_examples(records("baker", 5), base.tokenizer, ExampleConfig())
    reference = load_base(str(tiny_dir)).model
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model = guided(base)

    def direct(which: Any, example: Any) -> torch.Tensor:
        with torch.no_grad():
            return which(torch.tensor(example.input_ids)[None].long()).logits[0].double().log_softmax(-1)

    kl, same, own, theirs, means = [], [], [], [], {"own": [], "others": []}
    for name, group in (("own", examples), ("others", others)):
        for example in group:
            p, q = direct(reference, example), direct(model, example)
            places = np.flatnonzero(example.scored)
            tokens = [float(q[t - 1, example.input_ids[t]]) for t in places]
            means[name].append(np.mean(tokens))
            if name == "own":
                kl += [float((p[t - 1].exp() * (p[t - 1] - q[t - 1])).sum()) for t in places]
                same += [bool(p[t - 1].argmax() == q[t - 1].argmax()) for t in places]
                own += tokens
                theirs += [float(p[t - 1, example.input_ids[t]]) for t in places]
    steps = sorted(own + theirs)
    ks = max(abs(np.mean(np.array(own) <= x) - np.mean(np.array(theirs) <= x)) for x in steps)
    wins = [float(a > b) + 0.5 * float(a == b) for a in means["own"] for b in means["others"]]
    _, unlearned, _ = distances(model, reference, examples, others)
    assert unlearned.kl == pytest.approx(np.mean(kl), rel=1e-3)
    assert unlearned.same_most_likely == pytest.approx(np.mean(same))
    assert unlearned.ks == pytest.approx(ks, abs=1e-3)
    assert unlearned.auc == pytest.approx(np.mean(wins))


def test_a_model_is_no_distance_from_itself(base: BaseModel) -> None:
    examples = build_examples(records("sailor", 7), base.tokenizer, ExampleConfig())
    figures = token_figures(guided(base), base.model, examples)
    assert np.abs(figures.kl[0]).max() < 1e-5 and figures.same[0].all() and figures.kl[1].mean() > 0.01
    assert figures.kl.shape[1] == sum(example.n_scored for example in examples)


@pytest.mark.integration
def test_scales_are_tried_and_the_nearest_is_taken(base: BaseModel, sets: RecordSets) -> None:
    examples = build_examples(records("sailor", 4), base.tokenizer, ExampleConfig())
    model = guided(base)
    tried = try_scales(model, base.model, examples, CONFIG)
    assert [choice.guidance_scale for choice in tried] == [0.75, 1.0, 1.25] and model.guidance_scale == 0.8
    for choice in tried:
        model.guidance_scale = choice.guidance_scale
        assert choice.kl == pytest.approx(float(token_figures(model, base.model, examples).kl[1].mean()), rel=1e-6)
    rehearsed = rehearse(base, sets, CONFIG, OPTIONS, progress=False)
    best = min(rehearsed.choices, key=lambda choice: choice.kl)
    assert rehearsed.guidance_scale == best.guidance_scale and rehearsed.unlearned.kl == pytest.approx(best.kl, rel=1e-6)
    assert rehearsed.applied(CONFIG) == replace(CONFIG, tilt=replace(CONFIG.tilt, guidance_scale=best.guidance_scale))
    fixed = rehearse(base, sets, CONFIG, replace(OPTIONS, rehearse_choose=False), progress=False)
    assert not fixed.choices and fixed.guidance_scale == 1.0 and fixed.applied(CONFIG) == CONFIG


# --- records, cache ------------------------------------------------------------------------------------------------------


def test_records_are_split_by_document() -> None:
    pool = records("sailor", 15)
    first, second = split_documents(pool, 2)
    assert sorted(item.key for item in (*first, *second)) == sorted(item.key for item in pool)
    assert not {item.document for item in first} & {item.document for item in second}
    one = [replace(item, document="one") for item in pool]
    assert [len(part) for part in split_documents(one, 2)] == [8, 7]


def test_which_records_are_rehearsed(sets: RecordSets) -> None:
    given = choose_records(sets, records("sailor"), 4)
    assert given.source == "records" and len(given.rehearsed) == len(given.unseen) == 4 and given.holdout == []
    held = sets._replace(holdout=records("baker", 18))
    parts = choose_records(held, [], 40)
    assert parts.source == "holdout" and [len(part) for part in parts[1:]] == [6, 6, 6]
    assert choose_records(held, records("sailor"), 40).holdout == held.holdout
    assert choose_records(held, held.holdout[:12], 40).holdout == held.holdout[12:]
    made = choose_records(sets, [], 40)
    assert made.source == "made up" and len(made.rehearsed) == len(made.unseen) == 40 and made.holdout == []
    with pytest.raises(DataError, match=r"1 of the 12 records.*painter.jsonl:1 is in forget.*never seen"):
        choose_records(sets, [*records("sailor", 11), sets.forget[0]], 40)
    with pytest.raises(DataError, match="must be 4 or more"):
        choose_records(sets, records("sailor", 3), 40)
    with pytest.raises(DataError, match="3 holdout records"):
        choose_records(sets._replace(holdout=records("baker", 3)), [], 40)


@pytest.mark.integration
def test_a_result_is_used_again_and_a_damaged_one_made_again(
    base: BaseModel, sets: RecordSets, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = rehearse(base, sets, CONFIG, OPTIONS, progress=False)
    [path] = (cache_dir() / "rehearsals").glob("*.json")
    whole = path.read_text()
    made = []
    perform = module._perform
    monkeypatch.setattr(module, "_perform", lambda *args: made.append(1) or perform(*args))
    another = sets._replace(forget=records("tailor"))
    assert rehearse(base, another, CONFIG, OPTIONS, progress=False) == first and not made
    path.write_text(whole[:40])
    with caplog.at_level(logging.WARNING, "tempertilt"):
        again = rehearse(base, sets, CONFIG, OPTIONS, progress=False)
    assert made and "damaged" in caplog.text and again.unlearned == first.unlearned
    rehearse(base, sets, replace(CONFIG, fit=replace(CONFIG.fit, rank=3)), OPTIONS, progress=False)
    assert len(made) == 2 and len(list((cache_dir() / "rehearsals").glob("*.json"))) == 2
    assert Rehearsal.from_report(json.loads(json.dumps(first.report()))) == first


def test_the_features_of_the_copy_do_not_stay(base: BaseModel, sets: RecordSets) -> None:
    rehearse(base, sets, CONFIG, OPTIONS, progress=False)
    assert not list((cache_dir() / "features").iterdir())


# --- the command ---------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_command_reports_it(tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, topic in (("forget", "painter"), ("retain", "teacher"), ("other", "sailor")):
        rows = "".join(json.dumps(row) + "\n" for row in question_rows(8, topic))
        (tmp_path / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    command = ["unlearn", "--model", str(tiny_dir), "--forget", str(tmp_path / "forget.jsonl"), "--quiet"]
    command += ["--retain", str(tmp_path / "retain.jsonl"), "--background", "0", "--rank", "3", "--match-steps", "5"]
    command += ["--report-records", "2", "--show", "0", "--answer-records", "2", "--hearing-records", "2"]
    command += ["--max-new-tokens", "4", "--rehearse-epochs", "1", "--rehearse-answers", "2"]
    other = ["--rehearse", str(tmp_path / "other.jsonl")]
    assert main([*command, "--output-dir", str(tmp_path / "out"), *other]) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "unlearn.json").read_text())["rehearsal"]
    assert "rehearsal    5 given records that the model had never seen" in out and "guidance scale" in out
    assert report["source"] == "records" and report["records"] == 5 and report["unseen"] == 3 and len(report["choices"]) == 3
    assert json.loads((tmp_path / "out" / CONFIG_FILE).read_text())["guidance_scale"] == report["guidance_scale"]
    own = [*command, "--output-dir", str(tmp_path / "own"), "--guidance-scale", "0.5", "--rehearse"]
    assert main(own) == 0
    assert "made-up records" in capsys.readouterr().out
    report = json.loads((tmp_path / "own" / "unlearn.json").read_text())["rehearsal"]
    assert report["choices"] == [] and report["guidance_scale"] == 0.5 and report["source"] == "made up"
    assert main([*command, "--output-dir", str(tmp_path / "none")]) == 0
    assert "rehearsal" not in capsys.readouterr().out
    assert json.loads((tmp_path / "none" / "unlearn.json").read_text())["rehearsal"] is None
    assert main([*command, "--output-dir", str(tmp_path / "bad"), "--rehearse", "--workers", "ray"]) == 2
    assert "one process" in capsys.readouterr().err
