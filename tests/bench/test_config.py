"""Benchmarks as YAML: rows, grids, labels, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.benches import write_bench
from tempertilt.bench.config import EvaluationConfig, as_dict, read_config
from tempertilt.errors import ConfigError


def test_labels_say_what_is_chosen(tmp_path: Path, tiny_dir: Path) -> None:
    settings = [{"options": options} for options in ({}, {"temperature": 1.5, "guidance_scale": 1})]
    methods = {"oracle": {}, "t3": {"settings": settings}, "NPO": {"grid": {"beta": [0.1, "1e-2"]}}}
    labels = {c.name: c.labels for c in read_config(write_bench(tmp_path, tiny_dir, methods)).contenders}
    assert labels == {"oracle": ("",), "t3": ("defaults", "guidance_scale 1, temperature 1.5"), "NPO": ("beta 0.1", "beta 0.01")}


def test_only_the_named_rows_and_the_reference_points_are_read(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_bench(tmp_path, tiny_dir, {"target": {}, "NPO": {}, "oracle": {}})
    assert [c.name for c in read_config(path, ["oracle"]).contenders] == ["oracle", "target"]


def test_a_report_names_models_as_the_file_does(tmp_path: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY", str(tiny_dir))
    path = write_bench(tmp_path, tiny_dir, {"NPO": {}}, model="${TINY}")
    config = read_config(path)
    assert config.model == str(tiny_dir)
    assert as_dict(config, path)["model"] == "${TINY}" and as_dict(config, path)["seeds"] == config.seeds


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
        ({"NPO": {}}, {"evaluation": {"divergence": True}, "reference_model": None}, "divergence is true; must be false without"),
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


def test_runs_that_choose_generate_only_what_their_score_needs() -> None:
    every = EvaluationConfig()
    assert every.generated("report") == every.generate and every.generated("validation") == every.generate[1:]
    assert EvaluationConfig(generate=("forget", "retain")).generated("validation") == (), "no model utility, so no answers"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"overhead_prompts": -1}, "overhead_prompts"),
        ({"questions": {"forget": -1}}, "questions"),
        ({"validation_questions": {"forget": 1.5}}, "validation_questions"),
    ],
)
def test_evaluation_options_are_checked(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is "):
        EvaluationConfig(**options)
