"""Our options in an engine's model configuration: which adapters it has, and under which names.

One model:       `{"adapter": DIR}`, with `reply` and the tilt's settings if wanted
Parts together:  `{"adapters": {PART: DIR}}`
Several models:  `{"models": {NAME: one of the above, or {} for the base}}`; each request names its own

`check_base` stands beside any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tempertilt.errors import ConfigError
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.replies import GUESS

KEY = "tempertilt"  # of our options in the model's configuration, and of the model's name in a request's extra arguments
PREFIX = "T3"  # of the architecture's name
SETTINGS = tuple(field.name for field in fields(TiltConfig))
REPLY_PROCESSOR = "tempertilt.integrations.vllm.replies:ReplyProcessor"
WORKER = "tempertilt.integrations.vllm.worker.Worker"
SCHEDULER = "tempertilt.integrations.vllm.scheduler.make_scheduler"

Served = str | Mapping[str, str] | None
"""An adapter's directory, those of parts that act together, or None for the base."""


def hf_overrides(
    adapter: str | Mapping[str, str] | None,
    architecture: str,
    *,
    models: Mapping[str, Served] | None = None,
    check_base: bool = True,
    reply: str | dict[str, Any] | None = None,
    **settings: float,
) -> dict[str, Any]:
    """What makes vLLM build the unlearned model of an `architecture` (such as `LlamaForCausalLM`) with an adapter,
    with several by name that act together, or, instead of an `adapter`, with several `models` of which a request names one.

    `reply` is "guess", or the settings of a `Reply`, instead of the adapters' own.
    """
    given = settings if reply is None else {**settings, "reply": reply}
    if models is None:
        assert adapter is not None, "an adapter, or models"
        options = _options_of(adapter, given)
    else:
        options = {"models": {name: _options_of(served, given) for name, served in models.items()}}
    return {"architectures": [PREFIX + architecture], KEY: check_overrides({**options, "check_base": check_base})}


def _options_of(served: Served, given: Mapping[str, Any]) -> dict[str, Any]:
    if served is None:
        return {}
    if isinstance(served, str):
        return {"adapter": _absolute(served), **given}
    return {"adapters": {name: _absolute(place) for name, place in served.items()}, **given}


def _absolute(place: str) -> str:
    return str(Path(place).expanduser().resolve())


def check_overrides(options: Any) -> dict[str, Any]:
    """The options in the model's configuration, whole.

    Raises:
        ConfigError: they are missing, unknown or out of range.
    """
    models = options.get("models") if isinstance(options, dict) else None
    if models is None:
        return {"check_base": True, **_check_model(options, {"check_base"})}
    if not isinstance(models, dict) or not any(models.values()) or not all(isinstance(name, str) and name for name in models):
        raise ConfigError(f"{KEY} option models is {models!r}; must be adapters by the names of models, at least one")
    if unknown := sorted(set(options) - {"models", "check_base"}):
        raise ConfigError(f"unknown {KEY} options {', '.join(unknown)}; must be one of check_base, models")
    for each in models.values():
        if each != {}:
            _check_model(each, set())
    return {"check_base": True, **options}


def _check_model(options: Any, more: set[str]) -> dict[str, Any]:
    several = isinstance(options, dict) and _is_mapping_of_text(options.get("adapters"))
    valid = ({"adapters"} if several else {"adapter", "reply", *SETTINGS}) | more
    if not several and (not isinstance(options, dict) or not isinstance(options.get("adapter"), str)):
        raise ConfigError(
            f"the model's configuration has no {KEY!r} with an adapter (it is {options!r}): give vLLM the hf_overrides that "
            "tempertilt.integrations.vllm.hf_overrides makes"
        )
    if unknown := sorted(set(options) - valid):
        raise ConfigError(f"unknown {KEY} options {', '.join(unknown)}; must be one of {', '.join(sorted(valid))}")
    TiltConfig(**{name: options[name] for name in SETTINGS if options.get(name) is not None})
    if not isinstance(options.get("reply", GUESS), dict) and options.get("reply", GUESS) != GUESS:
        raise ConfigError(
            f"{KEY} option reply is {options['reply']!r}; must be {GUESS!r}, or what engine_arguments makes of a text"
        )
    return dict(options)


def _is_mapping_of_text(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(text, str) for text in (*value, *value.values()))


def models_of(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each model by its name, of options as `check_overrides` returns them; "" is the name of the only one."""
    return dict(options["models"]) if "models" in options else {"": dict(options)}


def places_of(options: Mapping[str, Any]) -> dict[str, str]:
    """The directories of a model's adapters by the names of parts, of its options; none of the base."""
    if not options:
        return {}
    return dict(options.get("adapters") or {"": options["adapter"]})


def model_of(extra_args: Mapping[str, Any] | None) -> str | None:
    """The model that a request names, of the extra arguments of its sampling parameters."""
    name = (extra_args or {}).get(KEY)
    return name if isinstance(name, str) else None
