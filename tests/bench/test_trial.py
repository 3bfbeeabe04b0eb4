"""Keys of trials: what a trial depends on changes its key, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.benches import write_bench
from tempertilt.bench.config import Setting, read_config
from tempertilt.bench.trial import Trials, load_data
from tempertilt.config.keys import PROTOCOLS

METHODS = {"NPO": "train", "ULD": "train", "t3": "head", "InputFilter": None, "target": None}


@pytest.fixture()
def trials(tmp_path: Path, tiny_dir: Path) -> Trials:
    config = read_config(write_bench(tmp_path, tiny_dir, {"NPO": {}}))
    return Trials(config, load_data(config), tmp_path)


def keys(trials: Trials) -> dict[str, str]:
    return {name: trials.trial(name, Setting(name, {}), 0, "report").key for name in METHODS}


@pytest.mark.parametrize("step", ["train", "head", "measure", "trial", "finetune"])
def test_a_changed_step_runs_the_trials_of_its_methods_again(trials: Trials, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(trials)
    monkeypatch.setitem(PROTOCOLS, step, PROTOCOLS[step] + 1)
    changed = {name for name, key in keys(trials).items() if key != before[name]}
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
