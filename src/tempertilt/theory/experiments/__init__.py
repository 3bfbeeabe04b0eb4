"""The experiments of `t3 theory`, by name; each module has `run(seed) -> Result`."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from tempertilt.errors import ConfigError
from tempertilt.theory.experiments.result import Result, Table

__all__ = ["EXPERIMENTS", "Experiment", "Result", "Table", "run_experiment"]


class Experiment(NamedTuple):
    """An experiment's module, and what it shows."""

    module: str
    description: str


EXPERIMENTS = {
    "spike": Experiment("spike", "a sharpening spike: plain guidance diverges, tempered vanishes, threshold at T = 1/s"),
    "finite-samples": Experiment(
        "finite_samples", "learned logistic and MLP classifiers: forget and retain error against n and T"
    ),
    "trade-off": Experiment("trade_off", "forget and retain error over T, with bounds and the predicted optimum"),
    "mixture-2d": Experiment("mixture_2d", "samples from the tempered, tilted density of a mixture in the plane"),
    "token-toy": Experiment("token_toy", "a Markov source with a memorised string: chain rule, exact recovery, leak against T"),
}


def run_experiment(name: str, seed: int = 0) -> Result:
    """Run one experiment.

    Raises:
        ConfigError: there is none of this name, or the seed is negative.
        MissingExtraError: scikit-learn is needed and not installed.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"there is no experiment {name!r}; must be one of {', '.join(EXPERIMENTS)}, all")
    if seed < 0:
        raise ConfigError(f"seed is {seed}; must be a whole number >= 0")
    module = importlib.import_module(f"tempertilt.theory.experiments.{EXPERIMENTS[name].module}")
    result: Result = module.run(seed)
    return result
