"""Trials: their keys, their questions, the files in their folders."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from support.benches import EVALUATION, FAST, document_of, open_bench, write_bench
from tempertilt.bench.config import Setting, read_config
from tempertilt.bench.trial import Trials, load_data, source_of, validation_documents
from tempertilt.config.keys import PROTOCOLS
from tempertilt.errors import DataError


@pytest.fixture()
def keys(tmp_path: Path, tiny_dir: Path) -> Any:
    """The key of each row's trial in a benchmark of NPO with other options."""

    def keys_of(methods: dict[str, Any] | None = None, **options: Any) -> dict[str, str]:
        path = write_bench(tmp_path, tiny_dir, methods or {"NPO": {"options": FAST}}, **{"seeds": [0], **options})
        return {trial.contender: trial.key for trial in open_bench(path).plan()}

    return keys_of


def test_a_key_follows_what_decides_a_trial(keys: Any) -> None:
    first = keys()
    assert keys({"NPO": {"options": FAST | {"beta": 0.2}}})["NPO"] != first["NPO"]
    assert keys(seeds=[1])["NPO"] != first["NPO"]
    assert keys(budget={"train_steps": 3})["NPO"] != first["NPO"]
    limited = keys(evaluation={"questions": {"forget": 1, "holdout": 0}})
    assert limited["NPO"] != first["NPO"] and limited["target"] != first["target"]


def test_a_key_does_not_follow_what_decides_nothing(keys: Any) -> None:
    first = keys()
    assert keys(trial_seconds=100.0, threads=2) == first
    assert keys(evaluation={**EVALUATION, "validation_questions": {"forget": 1}}) == first, "what is reported asks the same"
    renamed = keys({"mine": {"method": "NPO", "options": FAST}})
    assert renamed["mine"] == first["NPO"], "the name of a row decides nothing"


def test_a_key_follows_what_else_is_measured_only_where_it_is(keys: Any, tmp_path: Path) -> None:
    first, beside = keys(), keys(evaluation={**EVALUATION, "divergence": True})
    assert keys(evaluation={**EVALUATION, "divergence": False, "draws": 0}) == first, "the keys that there were before"
    assert len({keys["NPO"] for keys in (first, beside, keys(evaluation={**EVALUATION, "draws": 4}))}) == 3
    (tmp_path / "reference" / "extra.json").write_text("{}")
    assert keys(evaluation={**EVALUATION, "divergence": True})["NPO"] != beside["NPO"], "another reference"


def test_a_key_follows_the_reference_only_where_it_is_used(keys: Any, tmp_path: Path) -> None:
    first = keys()
    (tmp_path / "reference" / "extra.json").write_text("{}")
    changed = keys()
    assert changed["reference"] != first["reference"] and changed["NPO"] == first["NPO"]


def test_rows_with_one_key_share_a_folder(tmp_path: Path, tiny_dir: Path) -> None:
    methods = {name: {"method": "NPO", "options": FAST} for name in ("one", "two")}
    bench = open_bench(write_bench(tmp_path, tiny_dir, methods, seeds=[0]))
    folders = {bench._trial(c, 0, 0, "report").directory for c in bench.contenders if c.name in methods}
    assert len(folders) == 1


def test_a_key_has_the_source_of_a_method_outside_the_package(tmp_path: Path) -> None:
    from tempertilt.methods.registry import find_method

    assert source_of(find_method("NPO").build({})) == ""

    class Elsewhere:
        pass

    assert source_of(Elsewhere()) == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:32]


def test_results_of_another_key_are_not_read(tmp_path: Path, tiny_dir: Path) -> None:
    trial = open_bench(write_bench(tmp_path, tiny_dir, {"NPO": {}})).plan()[0]
    trial.directory.mkdir(parents=True)
    for text, known in ((f'{{"key": "{trial.key}"}}', True), ('{"key": "another"}', False), ("{", False), ("[]", False)):
        (trial.directory / "result.json").write_text(text)
        assert (trial.result() is not None) == known
    (trial.directory / "failure.json").write_text(f'{{"key": "{trial.key}", "error": "why"}}')
    assert trial.failure() == "why" and not trial.has_samples


METHODS = {"NPO": "train", "ULD": "train", "t3": "head", "InputFilter": None, "target": None}


@pytest.fixture()
def trials(tmp_path: Path, tiny_dir: Path) -> Trials:
    config = read_config(write_bench(tmp_path, tiny_dir, {"NPO": {}}))
    return Trials(config, load_data(config), tmp_path)


def keys_of(trials: Trials) -> dict[str, str]:
    return {name: trials.trial(name, Setting(name, {}), 0, "report").key for name in METHODS}


@pytest.mark.parametrize("step", ["train", "head", "measure", "trial", "finetune"])
def test_a_changed_step_runs_the_trials_of_its_methods_again(trials: Trials, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys_of(trials)
    monkeypatch.setitem(PROTOCOLS, step, PROTOCOLS[step] + 1)
    changed = {name for name, key in keys_of(trials).items() if key != before[name]}
    if step in ("measure", "trial"):
        assert changed == set(METHODS)
    else:
        assert changed == {name for name, own in METHODS.items() if own == step}


def test_options_and_seeds_count_where_they_matter(trials: Trials) -> None:
    def key(name: str, seed: int, **options: float) -> str:
        return trials.trial("row", Setting(name, options), seed, "report").key

    assert key("NPO", 0) == key("NPO", 0, beta=0.1) != key("NPO", 0, beta=0.2)
    assert key("NPO", 0) != key("NPO", 1)
    assert key("InputFilter", 0) == key("InputFilter", 1), "another seed gives the same filter"
    assert trials.trial("NPO", Setting("NPO", {}), 0, "validation").key != key("NPO", 0)


# --- questions -------------------------------------------------------------------------------------------------------


def test_documents_are_never_cut(tmp_path: Path, tiny_dir: Path) -> None:
    data = load_data(read_config(write_bench(tmp_path, tiny_dir, {"NPO": {}}, validation_fraction=0.34)))
    for split in ("forget", "retain"):
        parts = [{document_of(item.question) for item in data.parts[part][split]} for part in data.parts]
        assert parts[0] and parts[1] and not parts[0] & parts[1] and len(parts[0] | parts[1]) == 3
    assert "holdout" not in data.parts["report"]


def test_some_documents_are_for_validation_and_not_all() -> None:
    assert validation_documents(["a", "b"], 0.01, 0) < {"a", "b"}
    assert len(validation_documents(["a", "b"], 0.01, 0)) == 1
    assert len(validation_documents(list("abcdefghij"), 0.3, 1)) == 3


def test_questions_are_limited_by_part(tmp_path: Path, tiny_dir: Path) -> None:
    def parts(**evaluation: Any) -> Any:
        return load_data(
            read_config(write_bench(tmp_path, tiny_dir, {"NPO": {}}, evaluation={**evaluation, "generate": []}))
        ).parts

    both = parts(questions={"forget": 2, "holdout": 0})
    assert [len(both[part]["forget"]) for part in ("validation", "report")] == [2, 2]
    own = parts(questions={"forget": 3, "holdout": 0}, validation_questions={"forget": 1, "real_authors": 0})
    assert [len(own[part]["forget"]) for part in ("validation", "report")] == [1, 3]
    assert "real_authors" not in own["validation"] and "real_authors" in own["report"]


def test_a_part_without_questions_is_refused(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, {"NPO": {}})
    for name in ("forget.jsonl", "forget_perturbed.jsonl"):
        file = tmp_path / "data" / name
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(DataError, match="the validation part has no questions of forget, which has 1 documents"):
        load_data(read_config(path))
