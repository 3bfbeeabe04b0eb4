"""From a removal request to an adapter: records -> examples -> features -> gate and head -> adapter, and what changed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tempertilt.data.batches import example_key, spread
from tempertilt.data.examples import Example, ExampleConfig, build_examples, shared_prefix
from tempertilt.data.lines import json_text
from tempertilt.data.records import Record, RecordSets
from tempertilt.environment import Clock, environment
from tempertilt.errors import AdapterError, ConfigError
from tempertilt.fitting.background import BackgroundConfig, background_examples
from tempertilt.fitting.before_after import BeforeAfter, ReportConfig, compare
from tempertilt.fitting.calibrate import Calibration, CalibrationConfig, match_likelihood
from tempertilt.fitting.features import ExtractionStats, FeatureConfig, Features, FeatureStore, extract_features, store_name
from tempertilt.fitting.fit_gate import GateConfig, GateFit, TokenStates, fit_gate
from tempertilt.fitting.fit_head import FitConfig, FitResult, fit_head
from tempertilt.fitting.workers import Local, Workers
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.adapter import CARD, CONFIG, WEIGHTS, load_adapter, read_config, save_adapter
from tempertilt.models.base import BaseModel, decoder_layers
from tempertilt.models.limits import check_examples
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.storage import cache_dir, output_directory, write_text

log = logging.getLogger("tempertilt")

REPORT = "unlearn.json"


@dataclass(frozen=True)
class UnlearnConfig:
    """One configuration for each step of the flow. The defaults are the paper's setting; `METHODS` has ours."""

    examples: ExampleConfig = field(default_factory=ExampleConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    tilt: TiltConfig = field(default_factory=TiltConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    background: BackgroundConfig = field(default_factory=BackgroundConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def recipe(self) -> dict[str, Any]:
        """The options that decide what the adapter is, flat and JSON-ready."""
        parts = (self.examples, self.features, self.fit, self.tilt, self.gate, self.background, self.calibration)
        return {name: value for part in parts for name, value in asdict(part).items()}


METHODS = {
    "t3": UnlearnConfig(
        features=FeatureConfig(pooling="last"),
        fit=FitConfig(learning_rate=3e-3),
        tilt=TiltConfig(temperature=1.25, guidance_scale=0.86),
        gate=GateConfig(gate=True),
        background=BackgroundConfig(background=64),
        calibration=CalibrationConfig(calibrate=True),
    ),
    "t3-paper": UnlearnConfig(),
}
"""The settings of `t3 unlearn --method`: ours, and the paper's."""


@dataclass(frozen=True)
class UnlearnResult:
    """The unlearned model and how it was made. `fit` and `extraction` are None where a finished adapter was reused.

    `gate` and `calibration` are None where there is none, or for a reused adapter.
    """

    model: T3ForCausalLM
    directory: Path
    reused: bool
    extraction: ExtractionStats | None
    fit: FitResult | None
    changes: BeforeAfter
    seconds: dict[str, float]
    gate: GateFit | None = None
    calibration: Calibration | None = None

    def report(self) -> dict[str, Any]:
        """What `unlearn.json` holds."""
        return {
            "reused": self.reused,
            "seconds": self.seconds,
            "extraction": asdict(self.extraction) if self.extraction else None,
            "fit": self.fit.summary() if self.fit else None,
            "gate": self.gate.summary() if self.gate else None,
            "calibration": self.calibration._asdict() if self.calibration else None,
            "likelihood": {name: asdict(summary) for name, summary in self.changes.summaries.items()},
            "answers": [asdict(item) for item in self.changes.shown],
            "environment": environment(),
        }


@dataclass
class Request:
    """A removal request on its way to an adapter: what was given, and below the line what the steps have added to it."""

    base: BaseModel
    sets: RecordSets
    output_dir: Path
    config: UnlearnConfig
    workers: Workers
    overwrite: bool
    progress: bool
    # ---
    clock: Clock = field(default_factory=Clock)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    background: list[Example] = field(default_factory=list)
    key: str = ""
    layer: int | None = None
    forget: Features | None = None
    retain: Features | None = None
    extraction: ExtractionStats | None = None
    gate: GateFit | None = None
    fit: FitResult | None = None
    model: T3ForCausalLM | None = None
    calibration: Calibration | None = None
    changes: BeforeAfter | None = None

    @property
    def records(self) -> dict[str, list[Record]]:
        """The records by the name of their set."""
        return {"forget": self.sets.forget, "retain": self.sets.retain, "holdout": self.sets.holdout or []}

    @property
    def kept(self) -> list[Example]:
        """Retain records and background text."""
        return self.examples["retain"] + self.background


def unlearn(
    base: BaseModel,
    sets: RecordSets,
    output_dir: Path,
    config: UnlearnConfig | None = None,
    *,
    workers: Workers | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> UnlearnResult:
    """Fit an adapter that makes `base` stop producing `sets.forget`, write it, and measure what changed.

    `sets.retain` may be empty where there is background text. `config` is `METHODS["t3"]` if not given.

    `workers` extract the features, this process if not given. Where there are several processes, each of them calls this with
    the same arguments and has the same result; the first one writes.

    An adapter in `output_dir` that was made from the same model, records and options is reused.

    Raises:
        AdapterError: `output_dir` holds another adapter and `overwrite` is false, or files that are not an adapter's.
        TemperTiltError: a record, an option, the model or the directory is not usable; each says what must be.
    """
    config, workers = _within_context(config or METHODS["t3"], base), workers or Local()
    if not sets.retain and not config.background.background:
        raise ConfigError("there is nothing to retain: give retain records, or background text (--background N)")
    request = Request(base, sets, output_dir, config, workers, overwrite, progress and workers.first)
    tokenise(request)
    with output_directory(output_dir) if workers.first else nullcontext():
        if not reuse_finished(request):
            for step in STEPS:
                step(request)
        return measure_changes(request)


# --- the steps -----------------------------------------------------------------------------------------------------------


def tokenise(request: Request) -> None:
    """Records to tokens, and the key of all that decides the adapter."""
    with request.clock("tokenise"):
        request.examples = {
            name: build_examples(records, request.base.tokenizer, request.config.examples)
            for name, records in request.records.items()
        }
        for name, records in request.records.items():
            check_examples(request.base.model, request.base.tokenizer, records, request.examples[name])
    request.key = run_key(request.base, request.examples, request.config)


def reuse_finished(request: Request) -> bool:
    """Take the adapter in the output directory, if it is this request's."""
    output_dir = request.output_dir
    found = request.workers.share(
        lambda: load_adapter(output_dir) if _finished(output_dir, request.key, request.overwrite) else None
    )
    if found is None:
        return False
    if request.workers.first:
        log.warning("%s holds the adapter of this model, these records and options: reused", output_dir)
    request.model = T3ForCausalLM(request.base.model, found.head, found.config, found.gate)
    return True


def write_background(request: Request) -> None:
    """Let the base model write text that is retained beside the retain records."""
    base, config = request.base, request.config
    if not config.background.background:
        return
    with request.clock("background"):
        request.background = request.workers.together(
            lambda: background_examples(
                base.model,
                base.tokenizer,
                request.examples["forget"],
                config.background,
                config.examples,
                fingerprint=base.fingerprint,
                progress=request.progress,
            )
        )


def extract(request: Request) -> None:
    """One pass of the frozen model over all examples."""
    base, config, forget = request.base, request.config, request.examples["forget"]
    request.layer = config.gate.layer(len(decoder_layers(base.model))) if config.gate.gate else None
    directory = cache_dir() / "features" / store_name(base.fingerprint, base.model, config.features, request.layer)
    with request.clock("features"):
        features, request.extraction = extract_features(
            base.model,
            forget + request.kept,
            FeatureStore(directory, verify=request.workers.first),
            config.features,
            state_layer=request.layer,
            workers=request.workers,
            progress=request.progress,
        )
    request.forget = features.subset(range(len(forget)))
    request.retain = features.subset(range(len(forget), len(features)))


def find_exemplars(request: Request) -> None:
    """The gate, where there is one."""
    if (layer := request.layer) is None:
        return
    with request.clock("gate"):
        request.gate = request.workers.share(lambda: fit_gate(*_token_states(request), request.config.gate, layer))


def fit(request: Request) -> None:
    """The head, fitted where the base's output layer is."""
    assert request.retain is not None and request.forget is not None
    retain, forget, base = request.retain, request.forget, request.base

    def make() -> FitResult:
        device = base.model.get_output_embeddings().weight.device
        found = fit_head(
            retain,
            forget,
            request.config.fit,
            base_parameters=base.model.num_parameters(),
            device=device,
            progress=request.progress,
        )
        return replace(found, head=found.head.cpu())  # to be sent to other processes, which have devices of their own

    with request.clock("fit"):
        request.fit = request.workers.share(make)


def put_together(request: Request) -> None:
    """Base, head and gate as one model."""
    assert request.fit is not None
    base, config, gate = request.base, request.config, request.gate
    training: dict[str, Any] = {
        "key": request.key,
        "config": config.recipe(),
        "forget_records": len(request.records["forget"]),
        "retain_records": len(request.records["retain"]),
        "background_records": len(request.background),
        "fit": {name: value for name, value in request.fit.summary().items() if name not in ("seconds", "history")},
    }
    if gate is not None:
        training["gate"] = {name: value for name, value in gate.summary().items() if name != "seconds"}
    request.model = T3ForCausalLM.from_base(
        base.model,
        request.fit.head,
        gate=gate.gate if gate else None,
        **asdict(config.tilt),
        pooling=config.features.pooling,
        name=base.name,
        peft_adapter=base.peft_adapter,
        base_fingerprint=base.fingerprint,
        training=training,
    )


def calibrate(request: Request) -> None:
    """Choose the guidance scale, where holdout records are there to choose it with."""
    model, config = request.model, request.config.calibration
    if model is None or not config.calibrate or not request.examples["holdout"]:
        return
    some = [spread(request.examples[name], config.calibration_records) for name in ("forget", "holdout")]
    with request.clock("calibrate"):
        request.calibration = request.workers.together(lambda: match_likelihood(model, *some))
        model.guidance_scale = request.calibration.guidance_scale


def save(request: Request) -> None:
    """Write the adapter."""
    assert request.model is not None
    with request.clock("save"):
        if request.workers.first:
            save_adapter(request.output_dir, request.model.head, request.model.adapter_config, request.model.gate)


STEPS: tuple[Callable[[Request], None], ...] = (
    write_background,
    extract,
    find_exemplars,
    fit,
    put_together,
    calibrate,
    save,
)
"""From tokens to an adapter on disk."""


def measure_changes(request: Request) -> UnlearnResult:
    """Measure some records before and after, and write the report."""
    model, config = request.model, request.config
    assert model is not None
    with request.clock("before and after"):
        changes = request.workers.together(
            lambda: compare(model, request.base.tokenizer, request.records, request.examples, config.report, config.examples)
        )
    result = UnlearnResult(
        model=model,
        directory=request.output_dir,
        reused=request.fit is None,
        extraction=request.extraction,
        fit=request.fit,
        changes=changes,
        seconds=request.clock.seconds,
        gate=request.gate,
        calibration=request.calibration,
    )
    if request.workers.first:
        write_text(request.output_dir / REPORT, json_text(result.report(), indent=2, default=str) + "\n")
    return result


# --- what the steps use --------------------------------------------------------------------------------------------------


def _within_context(config: UnlearnConfig, base: BaseModel) -> UnlearnConfig:
    """The configuration with windows no longer than the positions that the model has."""
    limit = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or config.examples.max_length <= limit:
        return config
    shorter = replace(config.examples, max_length=limit, overlap=min(config.examples.overlap, limit // 4))
    return replace(config, examples=shorter)


def run_key(base: BaseModel, examples: dict[str, list[Example]], config: UnlearnConfig) -> str:
    """A hash of everything that decides the adapter: model, tokens, documents, options; 32 hex digits."""
    decisive = ("forget", "retain", "holdout") if config.calibration.calibrate else ("forget", "retain")
    content = {
        "fingerprint": base.fingerprint,
        "examples": {name: [(example_key(e), e.document) for e in examples[name]] for name in decisive},
        "config": config.recipe(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _finished(directory: Path, key: str, overwrite: bool) -> bool:
    """Whether `directory` holds the adapter `key`; refuse to write over anything else unless told to."""
    foreign = sorted(
        path.name
        for path in directory.iterdir()
        if path.name not in (CONFIG, WEIGHTS, CARD, REPORT) and not path.name.startswith(".unfinished-")
    )
    if foreign:
        raise AdapterError(f"{str(directory)!r} holds other files ({', '.join(foreign[:5])}); name a new or empty directory")
    if not (directory / CONFIG).is_file() or overwrite:
        return False
    if read_config(directory).training.get("key") != key:
        raise AdapterError(
            f"{str(directory)!r} holds an adapter made from another model, other records or other options; "
            "name another directory, or replace it with --overwrite"
        )
    return True


def _token_states(request: Request) -> tuple[TokenStates, TokenStates]:
    """Lower states of the forget and of the retain records, without the tokens with which all of them begin."""
    assert request.forget is not None and request.retain is not None
    forget, kept = request.examples["forget"], request.kept
    common = shared_prefix([example.input_ids[:-1] for example in forget + kept])  # a token remains of each
    starts = [int(example.scored.argmax()) - common for example in forget]
    starts = [start if start > 0 else len(example) - common for start, example in zip(starts, forget)]  # plain text: all of it
    states = [[rows[common:] for rows in found.states()] for found in (request.forget, request.retain)]
    return TokenStates(states[0], request.forget.documents, starts), TokenStates(states[1], request.retain.documents)
