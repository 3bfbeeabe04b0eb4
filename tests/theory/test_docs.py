"""docs/theory.md: its numbers are those that the commands print, its names exist, its examples run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tempertilt import theory
from tempertilt.theory.experiments import EXPERIMENTS, run_experiment

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["spike", "trade-off", "token-toy"])
def test_findings_and_tables_are_what_the_experiment_gives(name: str) -> None:
    result = run_experiment(name)
    assert result.summary.markdown() in PAGE
    for finding in result.findings:
        assert f"- {finding}\n" in PAGE


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_figures_and_tables_are_committed_together(name: str) -> None:
    assert (ROOT / "docs" / "figures" / f"{name}.png").stat().st_size > 20_000
    assert f"figures/{name}.png" in PAGE and f"--experiment {name}" in PAGE
    printed = (ROOT / "docs" / "figures" / f"{name}.md").read_text(encoding="utf-8")
    assert printed.split("\n", 2)[2].strip() in PAGE


def test_the_sweep_table_is_the_saved_sweep() -> None:
    checks = json.loads((ROOT / "benchmarks" / "results" / "theory_sweep.json").read_text())["checks"]
    total = sum(of["cases"] for of in checks.values())
    assert f"**{sum(of['violations'] for of in checks.values())} violations in {total:,} cases.**" in PAGE
    for name, of in checks.items():
        line = f"| {name.replace('|', '¦')} | {of['cases']} | {of['worst_ratio']:.6f} | {of['median_ratio']:.2g} |"
        assert line in PAGE, line
        assert of["worst_ratio"] <= 1 + 1e-7


def test_every_function_is_named_and_every_name_exists() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE)) | set(re.findall(r"theory\.(\w+)", PAGE))
    internal = {"Diagnosis", "log_guided_normalizer_lower_bound", "retain_log_ratio"}
    assert set(theory.__all__) - named <= internal
    functions = {name for name in named if re.fullmatch(r"[a-z]{3,}(_[a-z0-9]+)+", name)}
    assert functions <= set(theory.__all__)


def test_the_examples_run() -> None:
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[:2]
    exec(first, {})
    rng = np.random.default_rng(0)
    names = {"theory": theory, "log_p_retain": rng.normal(-40, 2, 50), "log_p_forget": rng.normal(-38, 1, 50)}
    names |= {"logits_retain": rng.normal(3, 1, 50), "logits_forget": rng.normal(-3, 1, 50)}
    exec(second, names)
    assert names["d"].recommended_temperature >= 1
