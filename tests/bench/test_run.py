"""A benchmark from beginning to end: the choice of settings, nothing twice, resuming, failures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.benches import EVALUATION, FAST, document_of, folder_of, open_bench, run_bench, write_bench
from tempertilt.bench.resampling import Value
from tempertilt.bench.run import Bench
from tempertilt.bench.tables import to_markdown
from tempertilt.environment import machine_of
from tempertilt.errors import DataError

pytestmark = pytest.mark.integration  # trials are processes

GRID = {"GradDiff": {"options": FAST, "grid": {"learning_rate": ["1e-4", 1e-2]}}}


@pytest.mark.usefixtures("points")
def test_a_setting_is_chosen_on_other_documents_and_seeds(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, GRID)
    target, reference, row = run_bench(path)
    assert (target.name, reference.name, row.name) == ("target", "reference", "GradDiff")
    assert [label for label, _, _ in row.selection] == ["learning_rate 0.0001", "learning_rate 0.01"]
    scores = {label: score for label, score, _ in row.selection}
    assert scores[row.label] == max(scores.values(), key=lambda score: score or 0) and row.seeds == (0, 1)
    assert reference.figures["ks_distance"].mean == 0 and reference.figures["forget_quality"].mean == 1
    assert row.costs["decoding"] == 1 and row.costs["training_seconds"] > 0

    results = [json.loads(file.read_text()) for file in tmp_path.glob("out/trials/GradDiff-*/result.json")]
    assert {(r["part"], r["seed"]) for r in results} == {("validation", 100), ("report", 0), ("report", 1)}
    assert row.machines == tuple(sorted({machine_of(r["environment"]) for r in results}))
    assert all(r["peak_memory_mib"]["unlearning"] > 0 and r["evaluation_seconds"]["total"] > 0 for r in results)

    questions: dict[str, set[str]] = {"validation": set(), "report": set()}
    for spec in tmp_path.glob("out/trials/*/trial.json"):
        part = json.loads(spec.read_text())["part"]
        lines = (spec.parent / "eval" / "samples.jsonl").read_text().splitlines()
        questions[part] |= {json.loads(line)["question"] for line in lines}
    assert not questions["validation"] & questions["report"]
    documents = {
        part: {document_of(question) for question in every if question.startswith("What did forget")}
        for part, every in questions.items()
    }
    assert documents["validation"] and documents["report"] and not documents["validation"] & documents["report"]


@pytest.mark.usefixtures("points")
def test_nothing_runs_twice(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {"options": FAST}}, seeds=[0])
    lines: list[str] = []
    first = run_bench(path, say=lines.append)
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.glob("out/trials/*/result.json")}
    assert len(stamps) == 5 and sum("NPO report" in line for line in lines) == 1
    again = run_bench(path, say=lines.append)
    assert stamps == {file: file.stat().st_mtime_ns for file in tmp_path.glob("out/trials/*/result.json")}
    assert repr(again) == repr(first) and lines[-1] == "3 of 3 trials are finished: not run again"


@pytest.mark.usefixtures("points")
def test_an_inference_method_is_a_row_with_its_costs(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, {"t3": {"options": {"options": {"epochs": 2}}}}, seeds=[0])
    row = run_bench(path)[-1]
    assert row.failures == () and row.costs["training_seconds"] > 0 and row.costs["decoding"] > 0
    assert row.figures["score"].seeds == 1


@pytest.mark.usefixtures("points")
def test_points_without_samples_are_measured_again_for_a_new_trial(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, {"OutputFilter": {}}, seeds=[0])
    first = run_bench(path)
    for samples in tmp_path.glob("out/trials/*/eval"):
        shutil.rmtree(samples)  # as in a clone
    path = write_bench(tmp_path, tiny_dir, {"OutputFilter": {"options": {"ngram": 2}}}, seeds=[0])
    second = run_bench(path)
    assert not second[-1].failures and second[-1].figures
    means = [{name: figure.mean for name, figure in rows[0].figures.items()} for rows in (first, second)]
    assert means[0] == means[1]


@pytest.mark.usefixtures("points")
def test_figures_that_can_not_be_made_again_are_named(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, {"OutputFilter": {}}, seeds=[0])
    run_bench(path)
    trial = folder_of(path, "OutputFilter")
    shutil.rmtree(trial / "eval")
    (trial / "metrics.json").write_text("{}")
    with pytest.raises(DataError, match=r"the samples to make them from are gone: .*OutputFilter-.*; remove .*result\.json"):
        run_bench(path, report_only=True)


@pytest.mark.usefixtures("points")
def test_trials_without_samples_keep_the_figures_that_they_have(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, {"target": {}}, seeds=[0])
    first = run_bench(path)[0]
    trial = next(tmp_path.glob("out/trials/target-*/metrics.json")).parent
    kept = json.loads((trial / "metrics.json").read_text())
    kept["key"][3] = kept["key"][3][:4]  # written when there were fewer figures
    del kept["values"]["exact_memorization"], kept["values"]["extraction_strength"]
    for samples in tmp_path.glob("out/trials/*/eval"):
        samples.rename(samples.with_name("away"))
    (trial / "metrics.json").write_text(json.dumps(kept))
    row = run_bench(path, report_only=True)[0]
    assert row.figures.keys() == first.figures.keys() - {"exact_memorization", "extraction_strength"}
    (trial / "away").rename(trial / "eval")
    assert run_bench(path, report_only=True)[0].figures.keys() == row.figures.keys(), "the reference's samples are gone"
    kept["key"][1] = "another reference"
    (trial / "metrics.json").write_text(json.dumps(kept))
    with pytest.raises(DataError, match="the samples to make them from are gone"):
        run_bench(path, report_only=True)


def test_forget_answers_beside_the_reference(tmp_path: Path, tiny_dir: Path) -> None:
    evaluation = {**EVALUATION, "generate": ["forget"], "max_new_tokens": 4, "divergence": True, "draws": 2}
    path = write_bench(tmp_path, tiny_dir, {"target": {}}, seeds=[0], evaluation=evaluation)
    target, reference = run_bench(path)
    assert reference.figures["reference_kl"].mean == 0 and reference.figures["reference_same_top"].mean == 1
    assert target.figures["reference_kl"].mean > 0 and target.figures["reference_same_top"].mean < 1
    own = reference.figures["forget_reference_perplexity"].mean
    assert own == pytest.approx(reference.figures["forget_perplexity"].mean) and own != pytest.approx(
        target.figures["forget_reference_perplexity"].mean
    )
    asked = {"forget_ended", "forget_leaked", "forget_leak_rate", "forget_leak_at_n", "misattribution"}
    assert asked <= target.figures.keys()
    table = to_markdown([target, reference])
    assert "KL from reference ↓" in table and "misattribution ↓" in table


def test_between_equal_scores_the_gap_decides(tmp_path: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {"options": FAST, "grid": {"learning_rate": [1e-4, 1e-3, 1e-2]}}})
    bench = open_bench(path)
    contender = next(c for c in bench.contenders if c.name == "NPO")
    trials = [bench._trial(contender, i, 100, "validation") for i in range(3)]

    def choose(scores: list[float], gaps: list[float]) -> int | None:
        values = {t.key: {"score": Value(a, 0.0), "gap_score": Value(b, 0.0)} for t, a, b in zip(trials, scores, gaps)}
        monkeypatch.setattr(Bench, "_metrics", lambda _, trial: values[trial.key])
        return bench._chosen(contender)[0]

    assert choose([0.0, 0.0, 0.0], [0.1, 0.5, 0.3]) is None, "nothing has finished"
    for trial in trials:
        trial.directory.mkdir(parents=True)
        (trial.directory / "result.json").write_text(json.dumps({"key": trial.key}))
    assert choose([0.0, 0.0, 0.0], [0.1, 0.5, 0.3]) == 1
    assert choose([0.0, 0.0, 0.1], [0.1, 0.5, 0.3]) == 2, "the score comes first"
    assert choose([0.2, 0.2, 0.2], [0.4, 0.4, 0.4]) == 0


@pytest.fixture()
def broken(tmp_path: Path, tiny_dir: Path) -> Callable[..., Bench]:
    """A benchmark of a trial that fails; `options` are those of the run."""
    method = {"GradAscent": {"options": FAST | {"epochs": 3, "learning_rate": 1e30, "max_grad_norm": 1e30}}}
    path = write_bench(tmp_path, tiny_dir, method, seeds=[0])
    return lambda **options: open_bench(path, **options)


@pytest.mark.usefixtures("points")
def test_a_failed_trial_runs_again_only_if_asked(broken: Callable[..., Bench]) -> None:
    bench = broken()
    row = bench.run()[2]
    assert "lower learning_rate" in row.failures[0] and not row.figures
    failed = next(trial for trial in bench.plan() if trial.contender == "GradAscent")
    log = failed.directory / "log.txt"
    before = log.stat().st_size
    assert broken().run()[2].failures == row.failures and log.stat().st_size == before
    assert broken(retry_failed=True).run()[2].failures == row.failures and log.stat().st_size > before


@pytest.mark.usefixtures("points")
def test_a_killed_trial_runs_again(tmp_path: Path, tiny_dir: Path) -> None:
    lines: list[str] = []
    bench = open_bench(write_bench(tmp_path, tiny_dir, {"target": {}}), say=lines.append)
    target = next(trial for trial in bench.plan() if trial.contender == "target" and trial.part == "report")
    (target.directory / "result.json").unlink()  # as if it had been killed before its end
    bench.run()
    assert target.result() is not None and sum("target report" in line for line in lines) == 1
