"""Reference points: the model before unlearning, and the one that never saw the forget set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tempertilt.config.options import Options
from tempertilt.errors import ConfigError
from tempertilt.methods.registry import register
from tempertilt.methods.task import Method, Task, Unlearned

URL = "https://arxiv.org/abs/2401.06121"


@dataclass(frozen=True)
class PointConfig(Options):
    """A reference point has no options."""


def reference_of(task: Task) -> Any:
    """The model that never saw the forget set; `ConfigError` if the task has none."""
    if task.load_reference is None:
        raise ConfigError(
            "there is no reference model: name one in the configuration (reference_peft_adapter or reference_model)"
        )
    return task.load_reference().model


@register("target", URL, PointConfig)
class Target(Method):
    """The model before unlearning."""

    is_random = False

    def unlearn(self, task: Task) -> Unlearned:
        """Nothing."""
        return Unlearned(task.base.model)


@register("reference", URL, PointConfig)
class Reference(Method):
    """The model that never saw the forget set."""

    is_random = False

    def unlearn(self, task: Task) -> Unlearned:
        """Load it."""
        return Unlearned(reference_of(task))
