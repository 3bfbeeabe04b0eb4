"""A method of one's own, from its loss to the table, in one file that the benchmark reads as a plugin: that of examples/."""

from __future__ import annotations

from pathlib import Path

import pytest

UNIFORM = Path(__file__).resolve().parents[2] / "examples" / "uniform.py"


@pytest.mark.integration
@pytest.mark.usefixtures("points")
def test_it_runs_through_the_bench(tmp_path: Path, tiny_dir: Path) -> None:
    from support.benches import run_bench, write_bench

    methods = {"Uniform": {"options": {"epochs": 1, "lora_rank": 2}}}
    path = write_bench(tmp_path, tiny_dir, methods, plugins=[str(UNIFORM)], seeds=[0])
    target, reference, row = run_bench(path)
    assert (target.name, reference.name, row.name) == ("target", "reference", "Uniform")
    assert row.failures == () and row.costs["trained_parameters"] > 0 and row.figures["score"].seeds == 1
