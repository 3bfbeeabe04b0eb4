"""From a removal request to an adapter: records -> examples -> features -> gate and head -> adapter, and what changed."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tempertilt.data.batches import spread
from tempertilt.data.examples import Example, build_examples
from tempertilt.data.lines import json_text
from tempertilt.data.records import Record, RecordSets
from tempertilt.data.stand_ins import stand_ins
from tempertilt.environment import Clock
from tempertilt.errors import AdapterError, ConfigError
from tempertilt.fitting.background import background_examples
from tempertilt.fitting.before_after import BeforeAfter, compare
from tempertilt.fitting.calibrate import Calibration, match_likelihood
from tempertilt.fitting.estimate import Estimator, Targets, load_contrast, made_up_records
from tempertilt.fitting.features import ExtractionStats, Features, FeatureStore, extract_features
from tempertilt.fitting.fit_gates import GateInputs, GatesFit, fit_gates
from tempertilt.fitting.fit_head import FitResult, MatchResult, Retained, fit_head, match_targets
from tempertilt.fitting.guesses import guess_examples
from tempertilt.fitting.neighbours import Neighbourhood, contexts_of
from tempertilt.fitting.passes import AnswerStates, columns_and_rest
from tempertilt.fitting.readers import GateReaders
from tempertilt.fitting.recipe import METHODS as METHODS
from tempertilt.fitting.recipe import UnlearnConfig as UnlearnConfig
from tempertilt.fitting.recipe import features_dir, gate_layer, run_key, within_context
from tempertilt.fitting.result import REPORT as REPORT
from tempertilt.fitting.result import UnlearnResult as UnlearnResult
from tempertilt.fitting.result import whole_report
from tempertilt.fitting.workers import Local, Workers
from tempertilt.guidance.reply import Reply
from tempertilt.models.adapter import CARD, CONFIG, WEIGHTS, load_adapter, read_config, save_adapter, tokenizer_files
from tempertilt.models.base import BaseModel
from tempertilt.models.generation import stop_ids
from tempertilt.models.limits import check_examples
from tempertilt.models.replies import GUESS, make_reply
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.storage import output_directory, write_text

log = logging.getLogger("tempertilt")


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
    rehearsal: dict[str, Any] | None = None
    cache: Path | None = None
    readers: GateReaders | None = None
    # ---
    clock: Clock = field(default_factory=Clock)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    background: list[Example] = field(default_factory=list)
    reply: Reply | None = None
    key: str = ""
    layer: int | None = None
    forget: Features | None = None
    retain: Features | None = None
    extraction: ExtractionStats | None = None
    estimator: Estimator | None = None
    targets: Targets | None = None
    gate: GatesFit | None = None
    fit: FitResult | MatchResult | None = None
    model: T3ForCausalLM | None = None
    calibration: Calibration | None = None
    changes: BeforeAfter | None = None

    @property
    def records(self) -> dict[str, list[Record]]:
        """The records by the name of their set."""
        return {"forget": self.sets.forget, "retain": self.sets.retain, "holdout": self.sets.holdout or []}

    @property
    def retained(self) -> list[Example]:
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
    rehearsal: dict[str, Any] | None = None,
    cache: Path | None = None,
    readers: GateReaders | None = None,
) -> UnlearnResult:
    """Fit an adapter that makes `base` stop producing `sets.forget`, write it, and measure what changed.

    `sets.retain` may be empty where there is background text. `config` is `METHODS["t3"]` if not given.

    `workers` extract the features, this process if not given. Where there are several processes, each of them calls this with
    the same arguments and has the same result; the first one writes. `rehearsal` is what a rehearsal of the configuration has
    shown, JSON-ready, for the report. Features and background text are kept in the directory `cache`, else in the user's cache.
    `readers` are those of the gates, where parts of one model share them; else they are made from the records.

    An adapter in `output_dir` that was made from the same model, records and options is reused.

    Raises:
        AdapterError: `output_dir` holds another adapter and `overwrite` is false, or files that are not an adapter's.
        TemperTiltError: a record, an option, the model or the directory is not usable; each says what must be.
    """
    config, workers = within_context(config or METHODS["t3"], base), workers or Local()
    if not sets.retain and not config.background.background:
        raise ConfigError("there is nothing to retain: give retain records, or background text (--background N)")
    if config.features.pooling != "last" and (config.fit.objective == "match" or (config.gate.gate and config.gate.output_gate)):
        raise ConfigError(
            f"pooling is {config.features.pooling!r}; must be 'last' with --objective match or an output gate: they read the "
            "present state"
        )
    if config.reply.reply != GUESS and not config.gate.gate:
        raise ConfigError(f"reply is {config.reply.reply!r}; must be {GUESS} where there is no gate: it would be said everywhere")
    shown = progress and workers.first
    request = Request(base, sets, output_dir, config, workers, overwrite, shown, rehearsal, cache, readers)
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
    request.reply = make_reply(request.config.reply.reply, request.base.tokenizer, request.config.examples)
    request.key = run_key(request.base, request.examples, request.config, request.readers)


def reuse_finished(request: Request) -> bool:
    """Take the adapter in the output directory, if it is this request's."""
    output_dir = request.output_dir
    found = request.workers.share(lambda: load_adapter(output_dir) if _finished(request) else None)
    if found is None:
        return False
    if request.workers.first:
        log.warning("%s holds the adapter of this model, these records and options: reused", output_dir)
    request.model = T3ForCausalLM(request.base.model, found.head, found.config, found.gates)
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
                cache=request.cache,
                progress=request.progress,
            )
        )


def extract(request: Request) -> None:
    """One pass of the frozen model over all examples."""
    base, config, forget = request.base, request.config, request.examples["forget"]
    request.layer = gate_layer(base, config)
    directory = features_dir(base, config, request.cache)
    with request.clock("features"):
        features, request.extraction = extract_features(
            base.model,
            forget + request.retained,
            FeatureStore(directory, verify=request.workers.first),
            config.features,
            state_layer=request.layer,
            workers=request.workers,
            progress=request.progress,
        )
    request.forget = features.subset(range(len(forget)))
    request.retain = features.subset(range(len(forget), len(features)))


def estimate(request: Request) -> None:
    """What a model that never saw the forget records would say at the tokens of their answers, where the head is fitted to it."""
    if request.config.fit.objective != "match":
        return
    assert request.forget is not None
    forget, base, config = request.forget, request.base, request.config
    states, tokens = forget.gather(range(len(forget)))

    def make() -> Targets:
        contrast = load_contrast(base, config.estimate.contrast)
        request.estimator = Estimator(
            base.model,
            None if contrast is None else contrast.model,
            request.examples["forget"],
            _never_seen(request),
            request.examples["retain"] or request.background,
            config.estimate,
            temperature=config.tilt.temperature,
            forget_states=AnswerStates(states, tokens, None if request.layer is None else forget.states()),
            layer=request.layer,
            neighbours=_neighbours(request),
            untouched=sorted(stop_ids(base.model, base.tokenizer) | set(base.tokenizer.all_special_ids)),
        )
        return request.estimator.targets()

    with request.clock("estimate"):
        request.targets = request.workers.together(make)


def find_exemplars(request: Request) -> None:
    """The gates, where there are any."""
    if (layer := request.layer) is None:
        return
    assert request.forget is not None and request.retain is not None
    base, config, targets = request.base, request.config, request.targets
    ratios = None if targets is None else targets.ratios
    inputs = GateInputs(
        request.records["forget"],
        request.records["retain"],
        request.examples["forget"],
        request.retained,
        request.forget,
        request.retain,
        ratios,
    )
    with request.clock("gates"):
        request.gate = request.workers.together(
            lambda: fit_gates(
                base.model, base.tokenizer, inputs, config.gate, config.examples, layer, config.fit.seed, request.readers
            )
        )


def fit(request: Request) -> None:
    """The head, fitted where the base's output layer is."""
    assert request.retain is not None and request.forget is not None
    retain, forget, base, config, targets = request.retain, request.forget, request.base, request.config, request.targets
    device = base.model.get_output_embeddings().weight.device
    options: dict[str, Any] = {
        "base_parameters": base.model.num_parameters(),
        "device": device,
        "progress": request.progress,
    }

    def match() -> MatchResult:
        assert targets is not None
        return match_targets(targets, _retained(request, targets), config.fit, config.tilt, **options)

    def classify() -> FitResult:
        result = fit_head(retain, forget, config.fit, **options)
        return replace(result, head=result.head.cpu())  # to be sent to other processes, which have devices of their own

    with request.clock("fit"):
        request.fit = request.workers.share(match if targets is not None else classify)


def fit_guesses(request: Request) -> None:
    """The head once more, fitted where its own guesses lead, too."""
    count, estimator, request.estimator = request.config.estimate.guesses, request.estimator, None  # the contrast model goes
    if request.targets is None or not count:
        return
    base, records = request.base, request.records["forget"]

    def make() -> Targets:
        assert estimator is not None
        unlearned = _model_of(request, reply=None)
        return estimator.targets(guess_examples(unlearned, base.tokenizer, records, request.config.examples, count))

    with request.clock("guesses"):
        request.targets = request.workers.together(make)
    fit(request)


def put_together(request: Request) -> None:
    """Base, head and gate as one model."""
    request.model = _model_of(request, reply=request.reply)


def _model_of(request: Request, *, reply: Reply | None) -> T3ForCausalLM:
    """Base, the latest head, and gate as one model, with a reply or with guesses."""
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
    if request.targets is not None:
        training["estimate"] = request.targets.summary
    return T3ForCausalLM.from_base(
        base.model,
        request.fit.head,
        gates=gate.gates if gate else None,
        reply=reply,
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
            model, tokenizer = request.model, request.base.tokenizer
            save_adapter(request.output_dir, model.head, model.adapter_config, model.gates, tokenizer)


STEPS: tuple[Callable[[Request], None], ...] = (
    write_background,
    extract,
    estimate,
    find_exemplars,
    fit,
    fit_guesses,
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
        estimate=request.targets.summary if request.targets else None,
        rehearsal=request.rehearsal,
    )
    if request.workers.first:
        write_text(request.output_dir / REPORT, json_text(whole_report(result), indent=2, default=str) + "\n")
    return result


# --- what the steps use --------------------------------------------------------------------------------------------------


def _finished(request: Request) -> bool:
    """Whether the output directory holds the request's adapter; refuse to write over anything else unless told to."""
    directory = request.output_dir
    ours = {CONFIG, WEIGHTS, CARD, REPORT, *tokenizer_files(request.base.tokenizer)}
    names = sorted(path.name for path in directory.iterdir())
    foreign = [name for name in names if name not in ours and not name.startswith(".unfinished-")]
    if foreign:
        raise AdapterError(f"{str(directory)!r} holds other files ({', '.join(foreign[:5])}); name a new or empty directory")
    if not (directory / CONFIG).is_file() or request.overwrite:
        return False
    if read_config(directory).training.get("key") != request.key:
        raise AdapterError(
            f"{str(directory)!r} holds an adapter made from another model, other records or other options; "
            "name another directory, or replace it with --overwrite"
        )
    return True


RETAIN_CONTEXTS = 2048  # retain contexts that the head is fitted on, at most


def _never_seen(request: Request) -> dict[str, list[Example]]:
    """Records that the base was surely not trained on: holdout records; else made-up ones, then those of the retained kind."""
    config, base = request.config, request.base
    count = config.estimate.estimate_records
    if holdout := request.examples[
        "holdout"
    ]:  # not every so many: of rows in a fixed order it would be always the same questions
        return {"holdout": random.Random(config.fit.seed).sample(holdout, min(count, len(holdout)))}
    lists = {"made up": made_up_records(count), "stand-ins": stand_ins(request.records["retain"], count, config.fit.seed)}
    return {name: build_examples(records, base.tokenizer, config.examples) for name, records in lists.items() if records}


def _neighbours(request: Request) -> Neighbourhood | None:
    """Contexts of retained answers by their lower states, where these are at hand."""
    if request.layer is None or request.retain is None or not len(request.retain):
        return None
    return Neighbourhood(contexts_of(request.retained, request.retain.states()))


def _retained(request: Request, targets: Targets) -> Retained | None:
    """Contexts of retain answers, from all over, with what the base says there."""
    assert request.retain is not None
    if not len(request.retain) or not request.config.fit.retain_weight:
        return None
    mean = max(1.0, float(request.retain.lengths.mean()))
    some = spread(range(len(request.retain)), max(1, int(RETAIN_CONTEXTS / mean)))
    states, _ = request.retain.gather(some)
    return Retained(states, *columns_and_rest(request.base.model, states, targets.token_ids, request.config.tilt.temperature))
