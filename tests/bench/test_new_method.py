"""A method of one's own, from its loss to the table, in one file that the benchmark reads as a plugin."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from tempertilt.methods.registry import register
from tempertilt.methods.trained import TrainedMethod
from tempertilt.training.config import TrainConfig
from tempertilt.training.runner import Step


@register("Uniform", "https://arxiv.org/abs/2401.06121", TrainConfig)
class Uniform(TrainedMethod):
    """Every token as likely as any other on forget answers."""

    def loss(self, step: Step) -> Tensor:
        logits = step.forget.logits
        return (logits.logsumexp(-1) - logits.mean(-1)).mean() + step.retain.mean_nll


@pytest.mark.integration
@pytest.mark.usefixtures("points")
def test_it_runs_through_the_bench(tmp_path: Path, tiny_dir: Path) -> None:
    from support.benches import run_bench, write_bench

    path = write_bench(tmp_path, tiny_dir, {"Uniform": {"options": {"epochs": 1, "lora_rank": 2}}}, plugins=[__file__], seeds=[0])
    target, reference, row = run_bench(path)
    assert (target.name, reference.name, row.name) == ("target", "reference", "Uniform")
    assert row.failures == () and row.costs["trained_parameters"] > 0 and row.figures["score"].seeds == 1
