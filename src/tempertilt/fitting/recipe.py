"""The options of a fit in one place, what follows from them for a model, and the key of all that decides an adapter."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tempertilt.config.keys import FIT, key_of
from tempertilt.data.batches import example_key
from tempertilt.data.examples import Example, ExampleConfig
from tempertilt.fitting.background import BackgroundConfig
from tempertilt.fitting.before_after import ReportConfig
from tempertilt.fitting.calibrate import CalibrationConfig
from tempertilt.fitting.estimate import EstimateConfig
from tempertilt.fitting.features import FeatureConfig, store_name
from tempertilt.fitting.fit_gate import GateConfig
from tempertilt.fitting.fit_head import FitConfig
from tempertilt.fitting.readers import GateReaders
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.base import BaseModel, decoder_layers
from tempertilt.models.limits import positions
from tempertilt.models.replies import ReplyConfig
from tempertilt.storage import cache_dir


@dataclass(frozen=True)
class UnlearnConfig:
    """One configuration for each step of the flow. The defaults are the paper's setting; `METHODS` has ours."""

    examples: ExampleConfig = field(default_factory=ExampleConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    tilt: TiltConfig = field(default_factory=TiltConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    reply: ReplyConfig = field(default_factory=ReplyConfig)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    background: BackgroundConfig = field(default_factory=BackgroundConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def recipe(self) -> dict[str, Any]:
        """The options that decide what the adapter is, flat and JSON-ready."""
        parts = (getattr(self, part.name) for part in fields(self) if part.name != "report")
        return {name: value for part in parts for name, value in asdict(part).items()}


METHODS = {
    "t3": UnlearnConfig(
        features=FeatureConfig(pooling="last"),
        fit=FitConfig(objective="match", rank=96),
        tilt=TiltConfig(temperature=1.0, guidance_scale=1.0, forget_prior=0.9),
        gate=GateConfig(gate=True),
        background=BackgroundConfig(background=48),
    ),
    "t3-paper": UnlearnConfig(),
}
"""The settings of `t3 unlearn --method`: ours, and the paper's."""


def features_dir(base: BaseModel, config: UnlearnConfig, cache: Path | None = None) -> Path:
    """Where a cache, else the user's, keeps features of a model, extracted with a configuration."""
    name = store_name(base.fingerprint, base.model, config.features, gate_layer(base, config))
    return (cache or cache_dir()) / "features" / name


def gate_layer(base: BaseModel, config: UnlearnConfig) -> int | None:
    """The layer whose states the input gate reads; None without gates."""
    return config.gate.layer(len(decoder_layers(base.model))) if config.gate.gate else None


def within_context(config: UnlearnConfig, base: BaseModel) -> UnlearnConfig:
    """The configuration with windows no longer than the positions that the model has."""
    limit = positions(base.model)
    if limit is None or config.examples.max_length <= limit:
        return config
    shorter = replace(config.examples, max_length=limit, overlap=min(config.examples.overlap, limit // 4))
    return replace(config, examples=shorter)


def run_key(
    base: BaseModel, examples: dict[str, list[Example]], config: UnlearnConfig, readers: GateReaders | None = None
) -> str:
    """A key of everything that decides the adapter: model, tokens, documents, options, and the protocol of each step.

    Holdout records are among it where they calibrate the estimate or choose the scale.
    """
    uses_holdout = config.calibration.calibrate or config.fit.objective == "match"
    decisive = ("forget", "retain", "holdout") if uses_holdout else ("forget", "retain")
    return key_of(
        *FIT,
        fingerprint=base.fingerprint,
        records={name: [(example_key(e), e.document) for e in examples[name]] for name in decisive},
        config=config.recipe(),
        **({} if readers is None else {"readers": readers.digest}),
    )
