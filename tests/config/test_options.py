"""Options check their types and bounds when they are made, and say what a value must be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest

from tempertilt.bench.config import BenchConfig, EvaluationConfig
from tempertilt.config.options import Options, option
from tempertilt.errors import ConfigError
from tempertilt.fitting.fit_head import FitConfig
from tempertilt.fitting.launch import WorkersConfig
from tempertilt.methods.registry import methods
from tempertilt.suites.items import MeasureConfig
from tempertilt.suites.tofu import TofuConfig
from tempertilt.training.config import TrainConfig
from tempertilt.training.finetune import FinetuneConfig


@dataclass(frozen=True)
class Example(Options):
    count: int = option(3, "how many", ge=1)
    rate: float = option(0.5, "how fast", gt=0, le=1, hint="1 = as fast as can be")
    name: str = option("a", "which", choices=("a", "b"))
    label: str = option("x", "any text")
    on: bool = option(True, "whether")
    limit: int | None = option(None, "at most", ge=1)
    mixed: float | str = option(1.0, "a number, or its name")
    seeds: tuple[int, ...] = option((0,), "seeds", ge=0)
    sizes: Mapping[str, int] = option(help="sizes by name", default_factory=dict, ge=0)
    kinds: tuple[str, ...] = option((), "kinds", choices=("p", "q"))
    anything: Any = None
    inner: WorkersConfig = option(help="options of its own", default_factory=WorkersConfig)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 1), ("rate", 1), ("rate", 1e-300), ("name", "b"), ("label", ""), ("on", False), ("limit", None), ("limit", 7),
        ("mixed", "high"), ("mixed", 2), ("seeds", ()), ("seeds", [0, 5]), ("sizes", {"a": 0}), ("kinds", ("q", "p")),
        ("anything", object()),
    ],
)  # fmt: skip
def test_valid_values_are_kept(name: str, value: Any) -> None:
    assert getattr(Example(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "must"),
    [
        ("count", 0, "a whole number >= 1"),
        ("count", True, "a whole number >= 1"),
        ("count", 2.0, "a whole number >= 1"),
        ("count", "2", "a whole number >= 1"),
        ("count", None, "a whole number >= 1"),
        ("rate", 0, "a number > 0 and <= 1 (1 = as fast as can be)"),
        ("rate", 1.0001, "a number > 0 and <= 1 (1 = as fast as can be)"),
        ("rate", True, "a number > 0 and <= 1 (1 = as fast as can be)"),
        ("rate", math.nan, "a number > 0 and <= 1 (1 = as fast as can be)"),
        ("rate", math.inf, "a number > 0 and <= 1 (1 = as fast as can be)"),
        ("rate", "0.5", "a number > 0 and <= 1 (1 = as fast as can be)"),
        ("name", "c", "one of a, b"),
        ("name", None, "one of a, b"),
        ("name", ["a"], "one of a, b"),
        ("label", 3, "a text"),
        ("on", 1, "true or false"),
        ("on", "yes", "true or false"),
        ("limit", 0, "a whole number >= 1 or absent"),
        ("limit", 1.5, "a whole number >= 1 or absent"),
        ("mixed", None, "a number or a text"),
        ("mixed", math.nan, "a number or a text"),
        ("seeds", 3, "a list of whole numbers >= 0"),
        ("seeds", (1, -1), "a list of whole numbers >= 0"),
        ("seeds", (1, False), "a list of whole numbers >= 0"),
        ("sizes", {"a": "1"}, "a mapping from names to whole numbers >= 0"),
        ("sizes", {"a": -1}, "a mapping from names to whole numbers >= 0"),
        ("sizes", [1], "a mapping from names to whole numbers >= 0"),
        ("kinds", ("p", "r"), "a list of any of p, q"),
        ("kinds", "p", "a list of any of p, q"),
        ("inner", {"workers": "local"}, "WorkersConfig"),
    ],
)  # fmt: skip
def test_other_values_are_refused_in_one_sentence(name: str, value: Any, must: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Example(**{name: value})
    assert str(caught.value) == f"{name} is {value!r}; must be {must}"


def test_a_copy_with_another_value_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="count is -1"):
        replace(Example(), count=-1)


def test_a_field_of_a_plain_dataclass_is_checked_by_its_type_alone() -> None:
    @dataclass(frozen=True)
    class Plain(Options):
        size: int = field(default=2)

    assert Plain(-5).size == -5
    with pytest.raises(ConfigError, match="size is 'a'; must be a whole number"):
        Plain("a")  # type: ignore[arg-type]


CONFIGS = [FitConfig, WorkersConfig, MeasureConfig, TofuConfig, FinetuneConfig, TrainConfig, EvaluationConfig]


@pytest.mark.parametrize(
    "config",
    [*CONFIGS, *dict.fromkeys(entry.config for entry in methods().values())],  # in one order, whichever process collects
    ids=lambda config: config.__name__,
)
def test_every_option_of_the_package_has_a_help_text_and_refuses_what_is_of_no_type(config: Any) -> None:
    config()
    for item in fields(config):
        assert item.metadata["help"], item.name
        with pytest.raises(ConfigError, match=f"^{item.name} is .*; must be "):
            config(**{item.name: object()})


def test_the_benchmark_itself_is_made_of_options() -> None:
    assert issubclass(BenchConfig, Options)


def test_a_number_of_hundreds_of_digits_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"rate is 10{199}…; must be a number > 0"):
        Example(rate=10**400)
