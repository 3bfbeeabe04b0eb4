"""Temper-Then-Tilt unlearning of generative language models (Block et al., ICML 2026, arXiv 2602.10217)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tempertilt.environment import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from tempertilt.data.examples import ExampleConfig, build_examples
    from tempertilt.data.records import check_records, load_records
    from tempertilt.errors import TemperTiltError
    from tempertilt.fitting.features import FeatureConfig, FeatureStore, extract_features
    from tempertilt.fitting.fit_head import FitConfig, FitResult, fit_head
    from tempertilt.fitting.pipeline import UnlearnConfig, unlearn
    from tempertilt.guidance.head import GuidanceHead
    from tempertilt.guidance.tilt import TiltConfig
    from tempertilt.models.base import load_base
    from tempertilt.models.t3 import T3ForCausalLM

_HOME = {
    "load_base": "models.base",
    "ExampleConfig": "data.examples",
    "build_examples": "data.examples",
    "check_records": "data.records",
    "load_records": "data.records",
    "TemperTiltError": "errors",
    "FeatureConfig": "fitting.features",
    "FeatureStore": "fitting.features",
    "extract_features": "fitting.features",
    "FitConfig": "fitting.fit_head",
    "FitResult": "fitting.fit_head",
    "fit_head": "fitting.fit_head",
    "GuidanceHead": "guidance.head",
    "T3ForCausalLM": "models.t3",
    "TiltConfig": "guidance.tilt",
    "UnlearnConfig": "fitting.pipeline",
    "unlearn": "fitting.pipeline",
}

__all__ = [
    "ExampleConfig",
    "FeatureConfig",
    "FeatureStore",
    "FitConfig",
    "FitResult",
    "GuidanceHead",
    "T3ForCausalLM",
    "TemperTiltError",
    "TiltConfig",
    "UnlearnConfig",
    "build_examples",
    "check_records",
    "extract_features",
    "fit_head",
    "load_base",
    "load_records",
    "unlearn",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import tempertilt` and `t3 --help` stay quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'tempertilt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tempertilt.{_HOME[name]}"), name)
