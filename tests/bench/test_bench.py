"""The benchmark: choice of settings, nothing twice, resuming, failures, engines, tables."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from support.benches import FAST as EVALUATION
from support.benches import folder_of, shared, tiny_bench, write_bench
from support.warm import forked_trials  # noqa: F401  acts on every test here
from tempertilt.bench import tables
from tempertilt.bench.config import EvaluationConfig, as_dict, read_config
from tempertilt.bench.page import to_html
from tempertilt.bench.resampling import GENERATED_PARTS, LIKELIHOOD_PARTS, Value, resampled
from tempertilt.bench.run import Bench, RunOptions
from tempertilt.bench.scores import Figure, Row, costs, differences, figure, score
from tempertilt.bench.trial import load_data, validation_documents
from tempertilt.cli import main
from tempertilt.environment import machine_of
from tempertilt.errors import ConfigError, DataError, TemperTiltError
from tempertilt.report.figures import Axis, Point, pareto_figure, pareto_front

FAST = {"epochs": 1, "lora_rank": 2}


def document_of(question: str) -> int:
    return int(re.findall(r"\d+", question)[0]) // 2


def folders(out: Path, name: str) -> list[Path]:
    """That file of this test's trials; other tests have theirs beside them."""
    return [path for row in ("target", "reference", "GradDiff", "t3") for path in out.glob(f"trials/{row}-*/{name}")]


def test_a_setting_is_chosen_on_other_documents_and_seeds_and_nothing_runs_twice(
    tmp_path: Path, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {"learning_rate": ["1e-4", 1e-2]}
    methods = {"GradDiff": {"options": FAST, "grid": grid}, "t3": {"options": {"options": {"epochs": 2}}, "seeds": [0]}}
    path = write_bench(tmp_path, tiny_dir, methods)
    out = shared(tmp_path) / "out"
    command = ["bench", "--config", str(path), "--output-dir", str(out), "--workers", "2"]
    assert main([*command, "--dry-run"]) == 0
    planned = capsys.readouterr().out.splitlines()
    assert len(planned) == 4 + 2 + 1 and sum(line.startswith("to do") for line in planned) >= 3
    assert main(command) == 0
    first = capsys.readouterr()
    content = json.loads((out / "results.json").read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert list(rows) == ["target", "reference", "GradDiff", "t3"]
    labels = [label for label, _, _ in rows["GradDiff"]["selection"]]
    assert labels == ["learning_rate 0.0001", "learning_rate 0.01"] and rows["GradDiff"]["label"] in labels
    scores = {label: value for label, value, _ in rows["GradDiff"]["selection"]}
    assert scores[rows["GradDiff"]["label"]] == max(scores.values()) and rows["GradDiff"]["seeds"] == [0, 1]
    assert (
        rows["reference"]["figures"]["ks_distance"]["mean"] == 0 and rows["reference"]["figures"]["forget_quality"]["mean"] == 1
    )
    assert rows["t3"]["costs"]["training_seconds"] > 0 and rows["t3"]["costs"]["decoding"] > 0
    assert rows["GradDiff"]["costs"]["decoding"] == 1 and content["cost_ratio"]["cheapest"] == "GradDiff"
    assert {d["rival"] for d in content["t3_against_rivals"]} == {"GradDiff"}

    results = [json.loads(p.read_text()) for p in folders(out, "result.json")]
    assert content["machines"] == sorted({machine_of(r["environment"]) for r in results}) != []
    chosen_on = {(r["part"], r["seed"]) for r in results if r["contender"] == "GradDiff"}
    assert chosen_on == {("validation", 100), ("report", 0), ("report", 1)}
    asked: dict[str, set[str]] = {"validation": set(), "report": set()}
    for trial in (path.parent for path in folders(out, "trial.json")):
        part = json.loads((trial / "trial.json").read_text())["part"]
        for line in (trial / "eval" / "samples.jsonl").read_text().splitlines():
            asked[part].add(json.loads(line)["question"])
    documents = {
        part: {int(re.findall(r"\d+", q)[0]) // 2 for q in of if q.startswith("What did forget")} for part, of in asked.items()
    }
    assert documents["validation"] and documents["report"] and not documents["validation"] & documents["report"]
    assert not asked["validation"] & asked["report"]
    assert all(r["peak_memory_mib"]["unlearning"] > 0 and r["evaluation_seconds"]["total"] > 0 for r in results)

    stamps = {p: p.stat().st_mtime_ns for p in folders(out, "result.json")}
    assert main(command) == 0
    again = capsys.readouterr()
    assert stamps == {p: p.stat().st_mtime_ns for p in folders(out, "result.json")}, "nothing is run again"
    assert again.out == first.out and "are finished: not run again" in again.err
    for name in ("table.csv", "table.md", "table.tex", "leaderboard.html"):
        assert "GradDiff" in (out / name).read_text()
    table = list(csv.DictReader((out / "table.csv").open()))
    assert float(next(r for r in table if r["name"] == "t3")["ks_distance_mean"]) == rows["t3"]["figures"]["ks_distance"]["mean"]
    page = (out / "leaderboard.html").read_text()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "") and page.count("<svg") == 2
    assert main([*command, "--report-only", "--only", "GradDiff"]) == 0
    partial = capsys.readouterr()
    assert "none is run" in partial.err and "| GradDiff |" in partial.out and "| t3 |" not in partial.out


def test_points_without_samples_are_measured_again_for_a_new_trial(tmp_path: Path, tiny_dir: Path) -> None:
    first = tiny_bench(tmp_path, tiny_dir, {"OutputFilter": {}}, seeds=[0])
    kept = tmp_path / "clone"
    shutil.copytree(shared(tmp_path) / "out", kept, ignore=shutil.ignore_patterns("eval"))
    path = write_bench(tmp_path, tiny_dir, {"OutputFilter": {"options": {"ngram": 2}}}, seeds=[0])
    found = Bench(read_config(path), path, kept, RunOptions(workers=2)).run()
    assert not found[-1].failures and found[-1].figures
    means = [{name: of.mean for name, of in rows[0].figures.items()} for rows in (first, found)]
    assert means[0] == means[1]
    for trial in kept.glob("trials/OutputFilter-*"):
        shutil.rmtree(trial / "eval", ignore_errors=True)
        (trial / "metrics.json").write_text("{}")
    with pytest.raises(DataError, match=r"the samples to make them from are gone: .*OutputFilter-.*; remove .*result\.json"):
        Bench(read_config(path), path, kept, RunOptions(report_only=True)).run()


def test_between_equal_scores_the_gap_decides(tmp_path: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {"options": FAST, "grid": {"learning_rate": [1e-4, 1e-3, 1e-2]}}})
    bench = Bench(read_config(path), path, tmp_path / "out", RunOptions())
    contender = next(c for c in bench.contenders if c.name == "NPO")
    trials = [bench._trial(contender, i, 100, "validation") for i in range(3)]

    def choose(scores: list[float], gaps: list[float]) -> int | None:
        found = {t.key: {"score": Value(a, 0.0), "gap_score": Value(b, 0.0)} for t, a, b in zip(trials, scores, gaps)}
        monkeypatch.setattr(Bench, "_metrics", lambda _, trial: found[trial.key])
        return bench._chosen(contender)[0]

    assert choose([0.0, 0.0, 0.0], [0.1, 0.5, 0.3]) is None, "nothing has finished"
    for trial in trials:
        trial.directory.mkdir(parents=True)
        (trial.directory / "result.json").write_text(json.dumps({"key": trial.key}))
    assert choose([0.0, 0.0, 0.0], [0.1, 0.5, 0.3]) == 1
    assert choose([0.0, 0.0, 0.1], [0.1, 0.5, 0.3]) == 2, "the score comes first"
    assert choose([0.2, 0.2, 0.2], [0.4, 0.4, 0.4]) == 0


def test_a_killed_trial_runs_again_and_a_failed_one_only_if_asked(tmp_path: Path, tiny_dir: Path) -> None:
    broken = {"GradAscent": {"options": FAST | {"epochs": 3, "learning_rate": 1e30, "max_grad_norm": 1e30}}}
    rows = tiny_bench(tmp_path, tiny_dir, broken, seeds=[0])
    assert "lower learning_rate" in rows[2].failures[0] and not rows[2].figures
    path = write_bench(tmp_path, tiny_dir, broken, seeds=[0])
    said: list[str] = []
    out = shared(tmp_path) / "out"
    bench = Bench(read_config(path), path, out, RunOptions(), said.append)
    failed = next(t for t in bench.plan() if t.contender == "GradAscent")
    before = (failed.directory / "log.txt").stat().st_mtime_ns
    target = next(t for t in bench.plan() if t.contender == "target" and t.part == "report")
    (target.directory / "result.json").unlink()  # as if it had been killed before its end
    bench.run()
    assert target.result() is not None and sum("target report" in line for line in said) == 1
    assert (failed.directory / "log.txt").stat().st_mtime_ns == before
    Bench(read_config(path), path, out, RunOptions(retry_failed=True)).run()
    assert (failed.directory / "log.txt").stat().st_mtime_ns > before


def test_keys_follow_what_decides_a_trial(tmp_path: Path, tiny_dir: Path) -> None:
    def keys(methods: dict[str, Any], **options: Any) -> dict[str, str]:
        path = write_bench(tmp_path, tiny_dir, methods, **options)
        return {t.contender: t.key for t in Bench(read_config(path), path, tmp_path / "o", RunOptions()).plan()}

    first = keys({"NPO": {"options": FAST}}, seeds=[0])
    assert first == keys({"NPO": {"options": FAST}}, seeds=[0], trial_seconds=100.0, threads=2)
    assert keys({"NPO": {"options": FAST | {"beta": 0.2}}}, seeds=[0])["NPO"] != first["NPO"]
    assert keys({"NPO": {"options": FAST}}, seeds=[1])["NPO"] != first["NPO"]
    assert keys({"NPO": {"options": FAST}}, seeds=[0], budget={"train_steps": 3})["NPO"] != first["NPO"]
    limited = keys({"NPO": {"options": FAST}}, seeds=[0], evaluation={"questions": {"forget": 1, "holdout": 0}})
    assert limited["NPO"] != first["NPO"] and limited["target"] != first["target"]
    fewer = {**EVALUATION, "validation_questions": {"forget": 1}}
    assert keys({"NPO": {"options": FAST}}, seeds=[0], evaluation=fewer) == first, "what is reported asks the same"
    renamed = keys({"mine": {"method": "NPO", "options": FAST}}, seeds=[0])
    assert renamed["mine"] == first["NPO"], "the name of a row decides nothing"
    both = write_bench(tmp_path, tiny_dir, {name: {"method": "NPO", "options": FAST} for name in ("one", "two")}, seeds=[0])
    bench = Bench(read_config(both), both, tmp_path / "o", RunOptions())
    folders_of_both = {bench._trial(c, 0, 0, "report").directory for c in bench.contenders if c.name in ("one", "two")}
    assert len(folders_of_both) == 1, "rows with one key share its trial"
    extra = shared(tmp_path) / "reference" / "extra.json"
    extra.write_text("{}")
    changed = keys({"NPO": {"options": FAST}}, seeds=[0])
    extra.unlink()
    assert changed["reference"] != first["reference"] and changed["NPO"] == first["NPO"]


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_gives_the_same_results(tmp_path: Path, tiny_dir: Path) -> None:
    methods = {"NPO": {"options": FAST}}
    local = tiny_bench(tmp_path, tiny_dir, methods, seeds=[0])
    for file in (shared(tmp_path) / "out").glob("trials/NPO-*/result.json"):
        file.unlink()
        for sample in (file.parent / "eval").iterdir():
            sample.unlink()
    spread = tiny_bench(tmp_path, tiny_dir, methods, RunOptions(engine="ray", workers=2), seeds=[0])
    assert [repr(row.figures) for row in spread] == [repr(row.figures) for row in local] and spread[2].figures
    assert spread[2].costs["unlearn_seconds"] != local[2].costs["unlearn_seconds"], "it was run again"


def test_trained_methods_work_under_accelerate_launch(tmp_path: Path, tiny_dir: Path) -> None:
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launcher = (sys.executable, "-m", *launch.split(), "--main_process_port", "0")
    run = RunOptions(launcher=launcher)
    rows = tiny_bench(tmp_path, tiny_dir, {"pair": {"method": "NPO", "options": FAST | {"train_batch_size": 2}}}, run, seeds=[0])
    log = (folder_of(tmp_path, "pair") / "log.txt").read_text()
    assert rows[2].failures == (), log
    result = json.loads((folder_of(tmp_path, "pair") / "result.json").read_text())
    assert result["details"]["steps"] == 2, "six records, two processes of two records: two steps"


@pytest.mark.parametrize(
    ("tracker", "beta", "written"),  # beta: a key of its own for each
    [
        ("tensorboard", 0.11, "tensorboard/**/events.out.tfevents.*"),
        ("trackio", 0.12, "trackio/*.db"),
        ("wandb", 0.13, "wandb/offline-run-*"),
    ],
)
def test_tracking_writes_into_the_trial(
    tmp_path: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, beta: float, written: str
) -> None:
    pytest.importorskip(tracker)
    monkeypatch.setenv("WANDB_MODE", "offline")
    methods = {tracker: {"method": "NPO", "options": FAST | {"beta": beta}}}
    rows = tiny_bench(tmp_path, tiny_dir, methods, RunOptions(report_to=tracker), seeds=[0])
    trial = folder_of(tmp_path, tracker)
    assert rows[2].failures == () and list(trial.glob(written)) and not (trial / "work").exists()


def test_a_tracker_that_is_missing_is_named(tmp_path: Path, tiny_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {"options": FAST}}, seeds=[0])
    missing = next((name for name in ("wandb", "trackio") if find_spec(name) is None), None)
    if missing is None:
        pytest.skip("every tracker is installed")
    assert main(["bench", "--config", str(path), "--output-dir", str(tmp_path / "out"), "--report-to", missing]) == 2
    assert f"--report-to {missing} needs the package '{missing}'" in capsys.readouterr().err


def test_labels_say_what_is_chosen(tmp_path: Path, tiny_dir: Path) -> None:
    settings = [{"options": of} for of in ({}, {"temperature": 1.5, "guidance_scale": 1})]
    path = write_bench(tmp_path, tiny_dir, {"oracle": {}, "t3": {"settings": settings}, "NPO": {"grid": {"beta": [0.1, "1e-2"]}}})
    labels = {c.name: c.labels for c in read_config(path).contenders}
    assert labels == {"oracle": ("",), "t3": ("defaults", "guidance_scale 1, temperature 1.5"), "NPO": ("beta 0.1", "beta 0.01")}


def test_a_report_names_models_as_the_file_does(tmp_path: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY", str(tiny_dir))
    path = write_bench(tmp_path, tiny_dir, {"NPO": {}}, model="${TINY}")
    config = read_config(path)
    assert config.model == str(tiny_dir)
    assert as_dict(config, path)["model"] == "${TINY}" and as_dict(config, path)["seeds"] == config.seeds


def test_documents_are_never_cut(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {}}, validation_fraction=0.34)
    data = load_data(read_config(path))
    for split in ("forget", "retain"):
        parts = [{document_of(item.question) for item in data.parts[part][split]} for part in data.parts]
        assert parts[0] and parts[1] and not parts[0] & parts[1] and len(parts[0] | parts[1]) == 3
    assert "holdout" not in data.parts["report"]
    assert validation_documents(["a", "b"], 0.01, 0) < {"a", "b"} and len(validation_documents(list("abcdefghij"), 0.3, 1)) == 3
    few = write_bench(tmp_path, tiny_dir, {"NPO": {}}, evaluation={"questions": {"forget": 2, "holdout": 0}, "generate": []})
    assert [len(load_data(read_config(few)).parts[part]["forget"]) for part in ("validation", "report")] == [2, 2]
    limits = {"questions": {"forget": 3, "holdout": 0}, "validation_questions": {"forget": 1, "real_authors": 0}}
    fewer = load_data(read_config(write_bench(tmp_path, tiny_dir, {"NPO": {}}, evaluation={**limits, "generate": []}))).parts
    assert [len(fewer[part]["forget"]) for part in ("validation", "report")] == [1, 3]
    assert "real_authors" not in fewer["validation"] and "real_authors" in fewer["report"]


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ({"NPQ": {}}, {}, r"no method 'NPQ' \(did you mean NPO"),
        ({"NPO": {"grid": {"betta": [1]}}}, {}, r"NPO has no option 'betta' \(did you mean beta"),
        ({"NPO": {"grid": {"beta": 1}}}, {}, "must be a list"),
        ({"NPO": {"grid": {"beta": [0.0]}}}, {}, "beta is 0.0"),
        ({"NPO": {"beta": 1}}, {}, "must be one of method, seeds, options, grid, settings"),
        ({"NPO": {"grid": {"beta": [1]}, "settings": [{"beta": 1}]}}, {}, "both given"),
        ({}, {}, "methods is empty"),
        ({"NPO": {}}, {"seeds": [0, 100]}, r"seeds and selection_seeds share \[100\]"),
        ({"NPO": {}}, {"nothing": 1}, "unknown option 'nothing'"),
        ({"NPO": {}}, {"budget": {"hours": 1}}, "budget has no option 'hours'; must be one of train_seconds, train_steps"),
        ({"NPO": {}}, {"evaluation": {"generate": ["holdout"]}}, "must be a list of any of forget, retain"),
        ({"NPO": {}}, {"evaluation": {"questions": {"forgot": 1}}}, "the split 'forgot'"),
        ({"NPO": {}}, {"model": None}, "model is not named"),
        ({"NPO": {}}, {"plugins": ["nowhere.py"]}, "no plugin"),
        ({"NPO": {}}, {"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"NPO": {}}, {"data_dir": "${TEMPERTILT_NOT_SET}"}, "TEMPERTILT_NOT_SET} is not set; run  TEMPERTILT_NOT_SET="),
    ],
)
def test_bad_configurations(tmp_path: Path, tiny_dir: Path, methods: Any, options: dict[str, Any], message: str) -> None:
    path = write_bench(tmp_path, tiny_dir, methods, **options)
    with pytest.raises(ConfigError, match=message):
        read_config(path)


def test_bad_calls(tmp_path: Path, tiny_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {}})
    out = ["--output-dir", str(tmp_path / "out")]
    for arguments, message in (
        ([*out], "--config is needed"),
        (["--config", str(tmp_path / "none.yaml"), *out], "cannot be read"),
        (["--config", str(path), *out, "--only", "KL"], "--only KL is no row"),
        (["--config", str(path), *out, "--workers", "0"], "--workers is 0"),
    ):
        assert main(["bench", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    kept = (shared(tmp_path) / "data" / "retain.jsonl").rename(tmp_path / "kept.jsonl")
    assert main(["bench", "--config", str(path), *out]) == 2
    kept.rename(shared(tmp_path) / "data" / "retain.jsonl")
    assert "retain.jsonl" in capsys.readouterr().err


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_a_figure_is_the_mean_with_both_variances() -> None:
    values = [Value(0.2, 0.03), Value(0.4, 0.01), Value(0.3, 0.02)]
    of = figure("utility", values)
    seeds = 0.1 / math.sqrt(3)
    error = math.sqrt(seeds**2 + (0.03**2 + 0.01**2 + 0.02**2) / 3)
    assert of.mean == pytest.approx(0.3) and of.error == pytest.approx(error) and of.high == pytest.approx(0.3 + 1.96 * error)
    assert of.seed_high == pytest.approx(0.3 + 4.302652729911275 * seeds), "t with two degrees of freedom"
    one = figure("utility", [Value(0.2, 0.05)])
    assert one.high == pytest.approx(0.2 + 1.96 * 0.05) and math.isnan(one.seed_low)
    quality = figure("forget_quality", [Value(1e-4, math.nan), Value(1e-2, math.nan)])
    assert quality.mean == pytest.approx(1e-3) and (quality.low, quality.high) == (1e-4, 1e-2)


def test_resampled_figures_are_those_of_the_whole_and_have_the_error_of_the_choice_of_questions() -> None:
    rng = np.random.default_rng(1)
    whole = rng.lognormal(0.0, 1.0, (20000, 2)) * np.array([1.0, 1.8])

    def measured(some: Any) -> dict[str, Value]:
        ours, theirs = ({"forget_quality": of.tolist(), "forget_Q_A_Prob": (of / 50).tolist()} for of in some.T)
        return resampled(ours, theirs)

    samples = [whole[rng.integers(0, len(whole), 80)] for _ in range(200)]
    distances = [float(ks_2samp(*some.T).statistic) for some in samples]
    gaps = [abs(float((some[:, 0] - some[:, 1]).mean())) / 50 for some in samples]
    found = [measured(some) for some in samples[:10]]
    assert [of["ks_distance"].value for of in found] == pytest.approx(distances[:10])
    assert [of["forget_gap"].value for of in found] == pytest.approx(gaps[:10])
    assert np.mean([of["ks_distance"].error for of in found]) == pytest.approx(np.std(distances), rel=0.25)
    assert np.mean([of["forget_gap"].error for of in found]) == pytest.approx(np.std(gaps), rel=0.25)
    itself = measured(samples[0][:, [0, 0]])
    assert itself["ks_distance"][:2] == (0.0, 0.0) and itself["forget_gap"][:2] == (0.0, 0.0)


def test_a_utility_is_the_harmonic_mean_of_its_parts_and_missing_values_are_left_out() -> None:
    rng = np.random.default_rng(2)
    columns = {name: rng.uniform(0.1, 0.9, 7).tolist() for name in (*LIKELIHOOD_PARTS, *GENERATED_PARTS)}
    parts = [np.mean(columns[name]) for name in LIKELIHOOD_PARTS]
    assert resampled({name: columns[name] for name in LIKELIHOOD_PARTS}, None)["utility"].value == pytest.approx(hmean(parts))
    whole = resampled(columns, None)
    assert whole["utility"].value == pytest.approx(hmean([*parts, *(np.mean(columns[name]) for name in GENERATED_PARTS)]))
    assert whole["likelihood_utility"].value == pytest.approx(hmean(parts)) and "ks_distance" not in whole
    assert "utility" not in resampled({"forget_Q_A_Prob": [0.1, 0.2]}, None)
    holes = resampled({"forget_quality": [1.0, 2.0, None, 3.0], "forget_Q_A_Prob": [0.1, None, None, 0.4]},
                      {"forget_quality": [1.0, 5.0, 9.0, 3.0], "forget_Q_A_Prob": [0.2, 0.2, 0.2, 0.2]})  # fmt: skip
    assert holes["forget_Q_A_Prob"].value == pytest.approx(0.25) and holes["ks_distance"].value == pytest.approx(1 / 3)
    zero = resampled(columns | {"retain_Truth_Ratio": [0.0] * 7}, None)["utility"]
    assert zero[:2] == (0.0, 0.0)


def test_two_methods_are_compared_on_the_same_draws() -> None:
    rng = np.random.default_rng(3)
    hard = rng.uniform(0.1, 0.8, 60)  # what a question is for both: five times what tells the methods apart
    names = [name for name in LIKELIHOOD_PARTS if name.startswith("retain")]

    def measured(noise: float, by: float) -> Figure:
        values = hard + by + noise * rng.normal(size=60)
        return figure("retain_Q_A_Prob", [resampled(dict.fromkeys(names, values.tolist()), None)["retain_Q_A_Prob"]])

    def row_of(name: str, of: Figure) -> Row:
        return Row(name, "NPO", "", {}, (0,), {"retain_Q_A_Prob": of}, {}, (), ())

    same, shifted, noisy = measured(0.0, 0.0), measured(0.0, 0.05), measured(0.03, 0.02)
    (by_shift,) = differences(row_of("a", shifted), [row_of("b", same)])
    assert by_shift.value == pytest.approx(0.05) and by_shift.high - by_shift.low < 1e-9 < same.error
    (by_noise,) = differences(row_of("a", noisy), [row_of("b", same)])
    assert (by_noise.high - by_noise.low) / (2 * 1.96) == pytest.approx(0.03 / math.sqrt(60), rel=0.3)
    seeds = figure("retain_Q_A_Prob", [Value(same.mean + of, same.error, same.draws) for of in (-0.1, 0.1)])
    (by_seeds,) = differences(row_of("a", seeds), [row_of("b", same)])
    assert by_seeds.high == pytest.approx(1.96 * 0.1) and by_seeds.better == "open"


def exact(value: float) -> Value:
    """A figure that every draw agrees on."""
    return Value(value, 0.0, np.full(4, value))


def test_a_score_is_the_harmonic_mean_of_forgetting_and_keeping() -> None:
    target = {"utility": exact(0.5), "ks_distance": exact(0.9)}
    of = score({"utility": exact(0.4), "ks_distance": exact(0.3)}, target)
    assert of.value == pytest.approx(2 / (1 / (1 - 0.3 / 0.9) + 1 / 0.8)) and of.error == pytest.approx(0.0)
    assert score(target, target).value == 0.0, "a method that does nothing"
    apart = {"utility": exact(0.4), "ks_distance": exact(0.9), "forget_gap": exact(0.2)}
    by_gap = score(apart, target | {"forget_gap": exact(0.8)}, "forget_gap")
    assert by_gap.value == pytest.approx(2 / (1 / (1 - 0.2 / 0.8) + 1 / 0.8))
    assert score({"utility": exact(0.5), "ks_distance": exact(1.0)}, target).value == 0.0
    assert score({"utility": exact(0.9), "ks_distance": exact(0.0)}, target).value == pytest.approx(1.0)
    without = {"utility": exact(0.5), "forget_Q_A_Prob": exact(0.8)}
    assert score({**without, "forget_Q_A_Prob": exact(0.2)}, without).value == pytest.approx(2 / (1 / 0.75 + 1))
    draws = (np.array([0.2, 0.4]), np.array([0.8, 1.0]))
    half = Value(0.5, 0.0, np.full(2, 0.5))
    drawn = score(*({"utility": half, "ks_distance": Value(float(of.mean()), 0.1, of)} for of in draws))
    assert drawn.draws == pytest.approx([2 / (1 / 0.75 + 1), 2 / (1 / 0.6 + 1)])
    with pytest.raises(DataError, match="needs a utility"):
        score({}, target)


def row(name: str, mean: float, error: float, seconds: float) -> Row:
    draws = mean + error * np.random.default_rng(len(name) + ord(name[0])).choice([-1.0, 1.0], 4000)
    of = Figure(mean, mean - 1.96 * error, mean + 1.96 * error, math.nan, math.nan, 1, error, 0.0, draws)
    figures = {"score": of, "utility": of, "ks_distance": of, "forget_quality": of}
    prices = {"unlearn_seconds": seconds, "decoding": 1.0, "trained_parameters": 1e7}
    return Row(name, "NPO" if name != "t3" else "t3", "beta 1", {}, (0,), figures, prices, (("beta 1", mean, ""),), ())


def test_a_ratio_that_was_not_timed_is_no_cost() -> None:
    result = {"seconds": {"training": 2.0, "unlearn": 3.0, "load": 1.0}, "evaluation_seconds": {"total": 5.0},
              "peak_memory_mib": {"unlearning": 7.0}, "trained_parameters": 1, "artefact_bytes": 4,
              "train_flops": 8.0}  # fmt: skip
    timed, untimed = ({**result, "overhead": {"ratio": ratio}} for ratio in (2.0, None))
    assert costs([timed, timed])["decoding"] == 2.0 and costs([timed])["unlearn_seconds"] == 2.0
    assert "decoding" not in costs([untimed])


def test_t3_against_a_rival_and_the_ratio_of_costs() -> None:
    rows = [row("t3", 0.6, 0.03, 5.0), row("A", 0.4, 0.04, 100.0), row("B", 0.62, 0.04, 400.0)]
    found = {(d.figure, d.rival): d for d in differences(rows[0], rows)}
    assert found["score", "A"].better == "first" and found["score", "B"].better == "open"
    assert found["ks_distance", "A"].better == "second", "lower is better"
    assert found["score", "A"].low == pytest.approx(0.2 - 1.96 * 0.05, abs=0.005)
    ratio = tables.cost_ratio(rows)
    assert ratio is not None and ratio["cheapest"] == "A" and ratio["ratio"] == pytest.approx(0.05)
    assert [r.name for r in tables.ranked(rows)] == ["B", "t3", "A"]
    assert tables.cost_ratio(rows[1:]) is None and tables.rival_lines(rows[1:]) == []
    for text in (tables.to_markdown(rows), tables.to_latex(rows), tables.to_csv(rows), to_html(rows, "A <title>")):
        assert "0.6" in text and "nan" not in text.lower()
    assert "A &lt;title&gt;" in to_html(rows, "A <title>")


def test_the_front_is_what_no_other_point_beats() -> None:
    assert pareto_front([(1, 1), (2, 2), (3, 1), (2, 0), (2, 2)]) == [1, 2, 4]


def test_names_in_a_plot_stand_apart_and_inside() -> None:
    points = [Point(f"method{i}", 0.5, 0.5 + i / 1000, None, None, 0) for i in range(12)]
    axis = Axis(0.0, 1.0, [(0.0, "0"), (1.0, "1")], "")
    drawn = pareto_figure(points, axis, axis)
    places = [tuple(map(float, of)) for of in re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="note">method', drawn)]
    assert len(places) == 12
    for i, (x, y) in enumerate(places):
        assert 0 < x < 560 and 0 < y < 330
        assert all(abs(y - b) >= 13 or abs(x - a) >= 6 * len("method0") for a, b in places[:i])


def test_evaluation_options_are_checked() -> None:
    every = EvaluationConfig()
    assert every.generated("report") == every.generate and every.generated("validation") == every.generate[1:]
    assert EvaluationConfig(generate=("forget", "retain")).generated("validation") == (), "no model utility, so no answers"
    for options in (
        {"max_new_tokens": 0}, {"overhead_prompts": -1}, {"questions": {"forget": -1}}, {"validation_questions": {"forget": 1.5}},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="must be"):
            EvaluationConfig(**options)  # type: ignore[arg-type]


def test_two_benches_never_run_one_trial_at_once(tmp_path: Path, tiny_dir: Path) -> None:
    import fcntl

    path = write_bench(tmp_path, tiny_dir, {"NPO": {}})
    trial = tmp_path / "trial"
    trial.mkdir()
    (trial / "trial.json").write_text('{"key": "k"}')
    command = [sys.executable, "-m", "tempertilt.bench.worker", str(path), str(trial / "trial.json")]
    with (trial / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as second:
            assert second.stderr is not None
            while "waiting for it" not in (line := second.stderr.readline()):
                assert line, "the second one has ended"
            (trial / "result.json").write_text('{"key": "k"}')  # the first one has finished
            fcntl.flock(file, fcntl.LOCK_UN)
            assert second.wait(60) == 0


def test_a_trial_that_takes_too_long_is_ended(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {"options": FAST}}, trial_seconds=0.5)
    with pytest.raises(TemperTiltError, match="the target model could not be measured: it took longer than trial_seconds"):
        Bench(read_config(path), path, tmp_path / "out", RunOptions(workers=2)).run()
