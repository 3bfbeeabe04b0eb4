"""From a removal request to an adapter: records -> examples -> features -> gate and head -> adapter, and what changed."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tempertilt.data.examples import Example, ExampleConfig, build_examples, encode_prompt, shared_prefix
from tempertilt.data.records import Record, RecordSets
from tempertilt.environment import environment
from tempertilt.errors import AdapterError, ConfigError, TemperTiltError
from tempertilt.fitting.background import BackgroundConfig, background_examples
from tempertilt.fitting.before_after import Likelihood, Summary, greedy_answers, likelihoods, spread
from tempertilt.fitting.calibrate import Calibration, CalibrationConfig, match_likelihood
from tempertilt.fitting.features import (
    Engine,
    ExtractionStats,
    FeatureConfig,
    Features,
    FeatureStore,
    Local,
    example_key,
    extract_features,
    store_name,
)
from tempertilt.fitting.fit_head import FitConfig, FitResult, fit_head
from tempertilt.guidance.gate import GateConfig, GateFit, TokenStates, fit_gate
from tempertilt.guidance.tilt import check_forget_prior, check_guidance_scale, check_temperature
from tempertilt.models.adapter import CARD, CONFIG, WEIGHTS, load_adapter, read_config, save_adapter
from tempertilt.models.base import BaseModel, decoder_layers
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.storage import cache_dir, make_dir, write_text
from tempertilt.theory.diagnose import Diagnosis, Sides, diagnose_adapter

log = logging.getLogger("tempertilt")

REPORT = "unlearn.json"


@dataclass(frozen=True)
class TiltConfig:
    """The settings of the guided law; all can be changed after loading."""

    temperature: float = field(default=2.5, metadata={"help": "T: the base's logits are divided by it (1 = no tempering)"})
    guidance_scale: float = field(default=1.0, metadata={"help": "s: weight of the tilt (0 = no tilt)"})
    forget_prior: float = field(default=0.5, metadata={"help": "share of forget text in the base's law; 0.5 = the paper's tilt"})

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_guidance_scale(self.guidance_scale)
        check_forget_prior(self.forget_prior)


@dataclass(frozen=True)
class EvidenceConfig:
    """How much of the change is measured and shown."""

    report_records: int = field(
        default=50, metadata={"help": "records of each set whose likelihood and recall are measured; 0 = none"}
    )
    show: int = field(default=3, metadata={"help": "records of each set whose greedy answers are shown; 0 = none"})
    max_new_tokens: int = field(default=128, metadata={"help": "length of a shown answer, tokens"})

    def __post_init__(self) -> None:
        if self.report_records < 0 or self.show < 0 or self.max_new_tokens < 1:
            raise ConfigError(
                f"report_records is {self.report_records}, show {self.show}, max_new_tokens {self.max_new_tokens}; "
                "valid are >= 0, >= 0 and >= 1"
            )


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
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)

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
class Shown:
    """A record's greedy answers before and after."""

    set: str
    source: str
    question: str
    truth: str
    before: str
    after: str


@dataclass(frozen=True)
class UnlearnResult:
    """The unlearned model and how it came about. `fit` and `extraction` are None where a finished adapter was reused.

    `gate` and `calibration` are None where there is none, or for a reused adapter.
    `diagnosis` is what the theory says; None without held-out documents, without measured records, or for a reused adapter.
    """

    model: T3ForCausalLM
    directory: Path
    reused: bool
    extraction: ExtractionStats | None
    fit: FitResult | None
    summaries: dict[str, Summary]
    shown: list[Shown]
    seconds: dict[str, float]
    diagnosis: Diagnosis | None = None
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
            "likelihood": {name: asdict(summary) for name, summary in self.summaries.items()},
            "diagnosis": self.diagnosis.report() if self.diagnosis else None,
            "answers": [asdict(item) for item in self.shown],
            "environment": environment(),
        }


def unlearn(
    base: BaseModel,
    sets: RecordSets,
    output_dir: Path,
    config: UnlearnConfig | None = None,
    *,
    engine: Engine | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> UnlearnResult:
    """Fit an adapter that makes `base` stop producing `sets.forget`, write it, and measure what changed.

    `sets.retain` may be empty where there is background text. `config` is `METHODS["t3"]` if not given.

    `engine` is where features are extracted, this process if not given. Where it has several processes, each of them calls this
    with the same arguments and has the same result; the first one writes.

    An adapter in `output_dir` that was made from the same model, records and options is reused.

    Raises:
        AdapterError: `output_dir` holds another adapter and `overwrite` is false, or files that are not an adapter's.
        TemperTiltError: a record, an option, the model or the directory is not usable; each says what is valid.
    """
    config, engine = _within_context(config or METHODS["t3"], base), engine or Local()
    if not sets.retain and not config.background.background:
        raise ConfigError("there is nothing to keep: give retain records, or background text (--background N)")
    clock = _Clock()
    records = {"forget": sets.forget, "retain": sets.retain, "holdout": sets.holdout or []}
    with clock("tokenise"):
        examples = {name: build_examples(of, base.tokenizer, config.examples) for name, of in records.items()}
    key = run_key(base, examples, config)
    with output_directory(output_dir) if engine.first else nullcontext():
        found = engine.share(lambda: load_adapter(output_dir) if _finished(output_dir, key, overwrite) else None)
        if found is not None:
            if engine.first:
                log.warning("%s holds the adapter of this model, these records and options: reused", output_dir)
            made = _Made(T3ForCausalLM(base.model, found.head, found.config, found.gate), None, None, None, None)
        else:
            made = _make(base, records, examples, config, key, output_dir, clock, engine, progress)
        model, extraction, fit, gate, calibration = made
        with clock("evidence"):
            summaries, diagnosis, shown = engine.together(lambda: _evidence(base, model, fit, records, examples, config))
        result = UnlearnResult(
            model, output_dir, fit is None, extraction, fit, summaries, shown, clock.seconds, diagnosis, gate, calibration
        )
        if engine.first:
            write_text(output_dir / REPORT, json.dumps(result.report(), indent=2, default=str) + "\n")
    return result


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


@contextmanager
def output_directory(path: Path) -> Iterator[None]:
    """Make `path`, and take it away again if it was not there before and an error leaves it empty."""
    if path.exists() and not path.is_dir():
        raise TemperTiltError(f"--output-dir {str(path)!r} is a file; name a directory")
    existed = path.is_dir()
    make_dir(path)
    try:
        yield
    except BaseException:
        if not existed and not any(path.iterdir()):
            path.rmdir()
        raise


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


class _Made(NamedTuple):
    """A model with its adapter, and how it was made."""

    model: T3ForCausalLM
    extraction: ExtractionStats | None
    fit: FitResult | None
    gate: GateFit | None
    calibration: Calibration | None


def _make(
    base: BaseModel,
    records: dict[str, list[Record]],
    examples: dict[str, list[Example]],
    config: UnlearnConfig,
    key: str,
    output_dir: Path,
    clock: _Clock,
    engine: Engine,
    progress: bool,
) -> _Made:
    """Background, extract, fit, calibrate, save."""
    forget, kept = examples["forget"], list(examples["retain"])
    progress = progress and engine.first
    if config.background.background:
        asked = (base.model, base.tokenizer, forget, config.background, config.examples)
        with clock("background"):
            kept += engine.together(lambda: background_examples(*asked, fingerprint=base.fingerprint, progress=progress))
    layer = config.gate.layer(len(decoder_layers(base.model))) if config.gate.gate else None
    directory = cache_dir() / "features" / store_name(base.fingerprint, base.model, config.features, layer)
    with clock("features"):
        store = FeatureStore(directory, verify=engine.first)
        features, extraction = extract_features(
            base.model, forget + kept, store, config.features, state_layer=layer, engine=engine, progress=progress
        )
    parts = features.subset(range(len(forget))), features.subset(range(len(forget), len(forget) + len(kept)))
    gate: GateFit | None = None
    if layer is not None:
        states = layer  # for the type checker: a number, also inside the function
        with clock("gate"):
            gate = engine.share(lambda: fit_gate(*_token_states(forget, kept, parts), config.gate, states))
    with clock("fit"):
        fit: FitResult = engine.share(lambda: _fit(base, parts, config.fit, progress))
    training = {
        "key": key,
        "config": config.recipe(),
        "forget_records": len(records["forget"]),
        "retain_records": len(records["retain"]),
        "background_records": len(kept) - len(examples["retain"]),
        "fit": {name: value for name, value in fit.summary().items() if name not in ("seconds", "history")},
    }
    if gate is not None:
        training["gate"] = {name: value for name, value in gate.summary().items() if name != "seconds"}
    model = T3ForCausalLM.from_base(
        base.model, fit.head, gate=gate.gate if gate else None, **asdict(config.tilt), pooling=config.features.pooling,
        name=base.name, peft_adapter=base.peft_adapter, base_fingerprint=base.fingerprint, training=training,
    )  # fmt: skip
    calibration: Calibration | None = None
    if config.calibration.calibrate and examples["holdout"]:
        with clock("calibrate"):
            some = [spread(examples[name], config.calibration.calibration_records) for name in ("forget", "holdout")]
            calibration = engine.together(lambda: match_likelihood(model, *some))
            model.guidance_scale = calibration.guidance_scale
    with clock("save"):
        if engine.first:
            save_adapter(output_dir, model.head, model.adapter_config, model.gate)
    return _Made(model, extraction, fit, gate, calibration)


def _fit(base: BaseModel, parts: tuple[Features, Features], config: FitConfig, progress: bool) -> FitResult:
    """The head, fitted where the base's output layer is."""
    device = base.model.get_output_embeddings().weight.device
    fit = fit_head(
        retain=parts[1],
        forget=parts[0],
        config=config,
        base_parameters=base.model.num_parameters(),
        device=device,
        progress=progress,
    )
    return replace(fit, head=fit.head.cpu())  # to be sent to other processes, which have devices of their own


def _evidence(
    base: BaseModel,
    model: T3ForCausalLM,
    fit: FitResult | None,
    records: dict[str, list[Record]],
    examples: dict[str, list[Example]],
    config: UnlearnConfig,
) -> tuple[dict[str, Summary], Diagnosis | None, list[Shown]]:
    """What has changed on some records, what the theory says of it, and answers before and after."""
    chosen = {name: spread(of, config.evidence.report_records) for name, of in examples.items()}
    measured = {name: likelihoods(model, of) for name, of in chosen.items() if of}
    summaries = {name: Summary.of(of) for name, of in measured.items()}
    tilt = replace(config.tilt, guidance_scale=model.guidance_scale)
    return summaries, _diagnosis(fit, chosen, measured, tilt), _shown(model, base, records, config)


def _token_states(
    forget: list[Example], kept: list[Example], parts: tuple[Features, Features]
) -> tuple[TokenStates, TokenStates]:
    """Lower states of the forget and of the kept records, without the tokens with which all of them begin."""
    common = shared_prefix([example.input_ids[:-1] for example in forget + kept])  # a token remains of each
    starts = [int(example.scored.argmax()) - common for example in forget]
    starts = [start if start > 0 else len(example) - common for start, example in zip(starts, forget)]  # plain text: all of it
    states = [[rows[common:] for rows in of.states()] for of in parts]
    return TokenStates(states[0], parts[0].documents, starts), TokenStates(states[1], parts[1].documents)


def _diagnosis(
    fit: FitResult | None, examples: dict[str, list[Example]], measured: dict[str, list[Likelihood]], tilt: TiltConfig
) -> Diagnosis | None:
    """What the theory says of the measured records and the held-out documents; None where there are none."""
    if fit is None or fit.held_out_log_odds is None or not {"retain", "forget"} <= set(measured):
        return None
    totals = {name: [e.n_scored * of.base_log_prob for e, of in zip(examples[name], measured[name])] for name in measured}
    sides = Sides(totals["retain"], totals["forget"])
    return diagnose_adapter(sides, Sides(*fit.held_out_log_odds), **asdict(tilt))


def _shown(model: T3ForCausalLM, base: BaseModel, records: dict[str, list[Record]], config: UnlearnConfig) -> list[Shown]:
    """Greedy answers of some records of each set, before and after."""
    if not config.evidence.show:
        return []
    chosen = [(name, record) for name, of in records.items() for record in spread(of, config.evidence.show)]
    prompts = [encode_prompt(record, base.tokenizer, config.examples) for _, record in chosen]
    before, after = (
        greedy_answers(model, base.tokenizer, prompts, max_new_tokens=config.evidence.max_new_tokens, base=off)
        for off in (True, False)
    )
    return [
        Shown(name, record.source, record.question, record.answer, was, now)
        for (name, record), was, now in zip(chosen, before, after)
    ]


class _Clock:
    """Wall seconds of named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)
