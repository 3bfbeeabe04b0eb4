"""Rehearsal: how well a configuration unlearns, measured where the truth is known.

A copy of the model is taught records that the model has never seen, and unlearns exactly these. So the model from before is the
true reference: nothing has to be trained to compare with. The same retain records and options are used as for the request.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from tempertilt.config.keys import FIT, key_of
from tempertilt.config.options import Options, option
from tempertilt.data.batches import example_key, pad_batch, plan_batches, spread
from tempertilt.data.examples import Example, build_examples, encode_prompt
from tempertilt.data.fictional import FictionalConfig, fictional_authors
from tempertilt.data.records import Record, RecordSets
from tempertilt.environment import Clock
from tempertilt.errors import DataError
from tempertilt.fitting.before_after import NO_REPORT, count_facts, greedy_answers, paired_answers
from tempertilt.fitting.pipeline import unlearn
from tempertilt.fitting.recipe import UnlearnConfig, features_dir, within_context
from tempertilt.metrics.membership import auc
from tempertilt.models.base import BaseModel
from tempertilt.models.divergence import kl_and_same_top
from tempertilt.models.fingerprint import fingerprint
from tempertilt.models.limits import check_examples
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.storage import cache_dir, make_dir, write_text
from tempertilt.training.finetune import FinetuneConfig, finetune

log = logging.getLogger("tempertilt")

STEPS = (*FIT, "measure", "finetune", "rehearsal")
MADE_UP = FictionalConfig(n_authors=16, questions_per_author=6, seed=20_011)
"""Made-up records, other ones than those that stand in for holdout records in an estimate."""
FACTORS = (0.75, 1.0, 1.25)  # of the configured guidance scale, among which one is chosen
FEWEST = 4  # records that can be rehearsed with
BATCH_TOKENS = 512


@dataclass(frozen=True)
class RehearsalConfig(Options):
    """How much is rehearsed."""

    rehearse_records: int = option(40, "records that are taught and unlearned in a rehearsal, at most", ge=2)
    rehearse_choose: bool = option(True, "take the guidance scale that came nearest to the reference in the rehearsal")
    rehearse_answers: int = option(
        24, "rehearsal: rehearsed, and retain, records whose greedy answers are compared", ge=1, advanced=True
    )
    rehearse_epochs: int = option(7, "rehearsal: passes over the records while they are taught", ge=1, advanced=True)


class Distance(NamedTuple):
    """How far a model is from the reference at the answers that are rehearsed.

    Attributes:
        kl: KL(reference || model), nats a token.
        same_most_likely: share of the tokens at which both have the same most likely token.
        ks: Kolmogorov-Smirnov distance of the log-probabilities of the answers' tokens.
        auc: of the mean log-probability as a test whether a record was taught (against others, never seen); 0.5 = no signal.
    """

    kl: float
    same_most_likely: float
    ks: float
    auc: float


class Choice(NamedTuple):
    """A guidance scale that was tried, and KL(reference || unlearned) with it, nats a token."""

    guidance_scale: float
    kl: float


@dataclass(frozen=True)
class Rehearsal:
    """What a configuration achieves on a model, with records of a kind.

    Attributes:
        source: where the records came from: "records", "holdout" or "made up".
        records: how many were taught and unlearned; `unseen`: how many others, never seen, they were compared with.
        taught, unlearned: the copy that was taught, and the same unlearned.
        reference_auc: of the membership test on the reference, which has seen neither.
        answers: rehearsed records whose greedy answers were searched for facts.
        facts: facts in these records, and how many the answers of the reference, of the taught and of the unlearned give away.
        retain_answers, retain_unchanged: greedy answers to retain records, and those that unlearning left as they were.
        guidance_scale: with which this was measured.
        choices: the scales that it was chosen from, by the lowest KL; none where there was no choice.
    """

    source: str
    records: int
    unseen: int
    taught: Distance
    unlearned: Distance
    reference_auc: float
    answers: int
    facts: int
    facts_reference: int
    facts_taught: int
    facts_unlearned: int
    retain_answers: int
    retain_unchanged: int
    guidance_scale: float
    choices: tuple[Choice, ...]
    seconds: dict[str, float]

    def report(self) -> dict[str, Any]:
        """What `unlearn.json` holds, JSON-ready."""
        nested = {"taught": self.taught._asdict(), "unlearned": self.unlearned._asdict()}
        return asdict(self) | nested | {"choices": [choice._asdict() for choice in self.choices]}

    @classmethod
    def from_report(cls, values: dict[str, Any]) -> Rehearsal:
        """The rehearsal of a report."""
        distances = {name: Distance(**values[name]) for name in ("taught", "unlearned")}
        return cls(**values | distances | {"choices": tuple(Choice(**choice) for choice in values["choices"])})

    def applied(self, config: UnlearnConfig) -> UnlearnConfig:
        """The configuration with the guidance scale that was chosen."""
        if not self.choices:
            return config
        return replace(config, tilt=replace(config.tilt, guidance_scale=self.guidance_scale))


class Parts(NamedTuple):
    """Records for a rehearsal: to be taught and unlearned, never seen, and those that the estimate is calibrated on."""

    source: str
    rehearsed: list[Record]
    unseen: list[Record]
    holdout: list[Record]


def rehearse(
    base: BaseModel,
    sets: RecordSets,
    config: UnlearnConfig,
    options: RehearsalConfig | None = None,
    *,
    records: Sequence[Record] = (),
    progress: bool = True,
) -> Rehearsal:
    """Teach a copy of `base` records that `base` has never seen, unlearn these, and compare with `base`.

    `base` is left as it is. The copy takes as much memory as the model. The result is kept in the cache and used again for the
    same model, records and options.

    Args:
        sets: of the request; its retain records are retained here, too. Its forget records have no part in it.
        config: of the request.
        records: never seen by the model; without any, half of the holdout records, or without these made-up ones.

    Raises:
        DataError: there are too few records, or the model has seen them: they are forget or retain records.
    """
    options, config = options or RehearsalConfig(), within_context(config, base)
    parts = choose_records(sets, records, options.rehearse_records)
    path = cache_dir() / "rehearsals" / f"{rehearsal_key(base, sets.retain, parts, config, options)}.json"
    if (known := _read(path)) is not None:
        log.info("the rehearsal of this model with these records and options is known: %s", path)
        return known
    with torch.random.fork_rng():  # so that what follows is the same with and without a rehearsal
        rehearsal = _perform(base, sets.retain, parts, config, options, progress)
    make_dir(path.parent)
    write_text(path, json.dumps(rehearsal.report(), indent=2) + "\n")
    return rehearsal


# --- records and key -----------------------------------------------------------------------------------------------------


def choose_records(sets: RecordSets, records: Sequence[Record], at_most: int) -> Parts:
    """Records that the model has never seen, apart by document: some to be rehearsed, others that stay never seen.

    Raises:
        DataError: there are too few, or some are forget or retain records.
    """
    if records:
        _check_never_seen(sets, records)
        rehearsed, unseen = split_documents(records, 2)
        keys = {record.key for record in records}
        holdout = [record for record in sets.holdout if record.key not in keys]  # those that are taught are not never seen
        return Parts("records", rehearsed[:at_most], unseen[:at_most], holdout)
    if sets.holdout:
        if len(sets.holdout) < FEWEST:
            raise DataError(
                f"there are {len(sets.holdout)} holdout records; a rehearsal needs {FEWEST} or more: give more, or name others "
                "after --rehearse"
            )
        rehearsed, unseen, holdout = split_documents(sets.holdout, 3)
        return Parts("holdout", rehearsed[:at_most], unseen[:at_most], holdout)
    rehearsed, unseen = split_documents(
        [
            Record.from_question(item.question, item.answer, document=item.document, source="made up")
            for item in fictional_authors(MADE_UP)
        ],
        2,
    )
    return Parts("made up", rehearsed[:at_most], unseen[:at_most], [])


def _check_never_seen(sets: RecordSets, records: Sequence[Record]) -> None:
    if len(records) < FEWEST:
        raise DataError(f"there are {len(records)} records to rehearse with; must be {FEWEST} or more")
    known = {record.key: name for name in ("forget", "retain") for record in getattr(sets, name)}
    if seen := [record for record in records if record.key in known]:
        first = seen[0]
        raise DataError(
            f"{len(seen)} of the {len(records)} records to rehearse with are forget or retain records ({first.source} is in "
            f"{known[first.key]}); must be records that the model has never seen"
        )


def split_documents(records: Sequence[Record], parts: int) -> list[list[Record]]:
    """Records in parts, documents dealt out in turn; where there are fewer documents than parts, records are."""
    documents = list(dict.fromkeys(record.document for record in records))
    if len(documents) < parts:
        return [list(records[i::parts]) for i in range(parts)]
    places = {document: i % parts for i, document in enumerate(documents)}
    return [[record for record in records if places[record.document] == part] for part in range(parts)]


def rehearsal_key(
    base: BaseModel, retain: Sequence[Record], parts: Parts, config: UnlearnConfig, options: RehearsalConfig
) -> str:
    """A key of all that decides what a rehearsal shows; 32 hex digits."""
    sets = {"retain": retain, "rehearsed": parts.rehearsed, "unseen": parts.unseen, "holdout": parts.holdout}
    examples = {name: build_examples(records, base.tokenizer, config.examples) for name, records in sets.items() if records}
    return key_of(
        *STEPS,
        fingerprint=base.fingerprint,
        dtype=str(base.model.dtype),
        contrast=[base.peft_adapter is not None, base.source is not None],
        examples={name: [(example_key(item), item.document) for item in items] for name, items in examples.items()},
        config=config.recipe() | {"max_new_tokens": config.report.max_new_tokens},
        options=asdict(options),
    )


def _read(path: Path) -> Rehearsal | None:
    """The rehearsal in a file; None where there is none, or a damaged one."""
    try:
        return Rehearsal.from_report(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        log.warning("%s is damaged: the rehearsal is made again", path)
        return None


# --- the rehearsal -------------------------------------------------------------------------------------------------------


def _perform(
    base: BaseModel, retain: list[Record], parts: Parts, config: UnlearnConfig, options: RehearsalConfig, progress: bool
) -> Rehearsal:
    clock = Clock()
    log.info("rehearsal: %d records are taught and unlearned", len(parts.rehearsed))
    examples = _examples(base, parts, config)
    with clock("teach"):
        taught = teach(base, examples["rehearsed"], build_examples(retain, base.tokenizer, config.examples), options, progress)
    with TemporaryDirectory() as directory, _without_features(taught, config):
        sets = RecordSets(parts.rehearsed, retain, parts.holdout, [])
        with clock("unlearn"):
            result = unlearn(taught, sets, Path(directory) / "adapter", replace(config, report=NO_REPORT), progress=progress)
    model = result.model
    with clock("measure"):
        choices = try_scales(model, base.model, examples["rehearsed"], config) if _may_choose(config, parts, options) else ()
        if choices:
            model.guidance_scale = min(choices, key=lambda choice: choice.kl).guidance_scale
        before, after, reference_auc = distances(model, base.model, examples["rehearsed"], examples["unseen"])
        answers = answer_figures(model, base, parts.rehearsed, retain, config, options)
    return Rehearsal(
        source=parts.source,
        records=len(parts.rehearsed),
        unseen=len(parts.unseen),
        taught=before,
        unlearned=after,
        reference_auc=reference_auc,
        **answers._asdict(),
        guidance_scale=model.guidance_scale,
        choices=choices,
        seconds=clock.seconds,
    )


def _examples(base: BaseModel, parts: Parts, config: UnlearnConfig) -> dict[str, list[Example]]:
    sets = {"rehearsed": parts.rehearsed, "unseen": parts.unseen}
    examples = {name: build_examples(records, base.tokenizer, config.examples) for name, records in sets.items()}
    for name, records in sets.items():
        check_examples(base.model, base.tokenizer, records, examples[name])
    return examples


def teach(
    base: BaseModel, examples: Sequence[Example], retain: Sequence[Example], options: RehearsalConfig, progress: bool = False
) -> BaseModel:
    """A copy of the base that knows the examples, by LoRA merged into it; `base` is not changed.

    As many retain examples are taught beside them, so that the copy does not drift away from the base elsewhere.
    """
    config = FinetuneConfig(epochs=options.rehearse_epochs)
    beside = spread(retain, len(examples))
    model = copy.deepcopy(base.model)
    taught = finetune(model, [*examples, *beside], config, progress=progress).model.merge_and_unload()
    taught.requires_grad_(False).eval()
    return base._replace(model=taught, fingerprint=fingerprint(taught))


@contextmanager
def _without_features(taught: BaseModel, config: UnlearnConfig) -> Iterator[None]:
    """The features of the copy, which nobody will ask for again, are removed in the end."""
    try:
        yield
    finally:
        shutil.rmtree(features_dir(taught, config), ignore_errors=True)


def _may_choose(config: UnlearnConfig, parts: Parts, options: RehearsalConfig) -> bool:
    """Whether a scale is chosen here, and not by calibration on holdout records."""
    return options.rehearse_choose and not (config.calibration.calibrate and parts.holdout)


# --- the figures ---------------------------------------------------------------------------------------------------------


class TokenFigures(NamedTuple):
    """Of the taught and of the unlearned model `(2, N)` at N tokens, beside the reference.

    Attributes:
        log_probs: of the tokens, nats, `(3, N)`, the reference's last.
        kl: KL(reference || model), nats.
        same: whether the most likely token is the reference's.
        owners: the example of each token, `(N,)`.
    """

    log_probs: NDArray[np.float64]
    kl: NDArray[np.float64]
    same: NDArray[np.bool_]
    owners: NDArray[np.int64]


@torch.inference_mode()
def token_figures(model: T3ForCausalLM, reference: Any, examples: Sequence[Example]) -> TokenFigures:
    """Compare the unlearned model, and its base, with the reference at the scored tokens of examples."""
    rows: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    owners = []
    for batch in plan_batches(examples, BATCH_TOKENS):
        padded = pad_batch([examples[i] for i in batch], model.device)
        pair = model.paired_logits(padded.input_ids, padded.attention_mask, padded.predicting)
        inputs = {"input_ids": padded.input_ids, "attention_mask": padded.attention_mask, "use_cache": False}
        theirs = reference(**inputs).logits[padded.predicting]
        both = [logits.to(theirs.device) for logits in pair]
        targets = padded.input_ids[padded.targets].to(theirs.device)[:, None]
        own = [logits.float().log_softmax(-1).gather(-1, targets)[:, 0] for logits in (*both, theirs)]
        kl, same = zip(*(kl_and_same_top(logits, theirs) for logits in both))
        rows.append((torch.stack(own).double().cpu().numpy(), np.stack(kl), np.stack(same)))
        owners.append(np.repeat(batch, [examples[i].n_scored for i in batch]))
    log_probs, divergences, agree = (np.concatenate(column, 1) for column in zip(*rows))
    return TokenFigures(log_probs, divergences.astype(np.float64), agree, np.concatenate(owners))


def distances(
    model: T3ForCausalLM, reference: Any, rehearsed: Sequence[Example], unseen: Sequence[Example]
) -> tuple[Distance, Distance, float]:
    """Distances of the taught and of the unlearned model from the reference, and the reference's own AUC of membership."""
    own, others = token_figures(model, reference, rehearsed), token_figures(model, reference, unseen)
    aucs = [auc(-_means(own, row), -_means(others, row)) for row in range(3)]
    taught, unlearned = (
        Distance(
            float(own.kl[row].mean()),
            float(own.same[row].mean()),
            float(ks_2samp(own.log_probs[row], own.log_probs[2]).statistic),
            aucs[row],
        )
        for row in range(2)
    )
    return taught, unlearned, aucs[2]


def _means(figures: TokenFigures, row: int) -> NDArray[np.float64]:
    """Mean log-probability of each example."""
    means: NDArray[np.float64] = np.bincount(figures.owners, figures.log_probs[row]) / np.bincount(figures.owners)
    return means


def try_scales(model: T3ForCausalLM, reference: Any, examples: Sequence[Example], config: UnlearnConfig) -> tuple[Choice, ...]:
    """KL(reference || unlearned) with guidance scales around the configured one; the adapter stays as it was fitted."""
    choices = []
    for factor in FACTORS:
        scale = factor * config.tilt.guidance_scale
        with model.tilted(replace(model.tilt, guidance_scale=scale)):
            choices.append(Choice(scale, float(token_figures(model, reference, examples).kl[1].mean())))
    return tuple(choices)


class AnswerFigures(NamedTuple):
    """Counts of greedy answers and of facts in them; the attributes of `Rehearsal` of these names."""

    answers: int
    facts: int
    facts_reference: int
    facts_taught: int
    facts_unlearned: int
    retain_answers: int
    retain_unchanged: int


def answer_figures(
    model: T3ForCausalLM,
    reference: BaseModel,
    rehearsed: Sequence[Record],
    retain: Sequence[Record],
    config: UnlearnConfig,
    options: RehearsalConfig,
) -> AnswerFigures:
    """Greedy answers of the reference, of the taught model and of the unlearned one to some records."""
    tokenizer, length = reference.tokenizer, config.report.max_new_tokens
    sets = {"rehearsed": rehearsed, "retain": retain}
    asked = [(name, item) for name, found in sets.items() for item in spread(list(enumerate(found, 1)), options.rehearse_answers)]
    answers = paired_answers(model, tokenizer, asked, config.report, config.examples)
    pairs = {number: pair for (name, number), pair in answers.items() if name == "rehearsed"}
    prompts = [encode_prompt(rehearsed[number - 1], tokenizer, config.examples) for number in pairs]
    own = greedy_answers(reference.model, tokenizer, prompts, max_new_tokens=length)
    guessed = count_facts(rehearsed, {number: (text, text) for number, text in zip(pairs, own)})
    facts = count_facts(rehearsed, pairs)
    unchanged = [before == after for (name, _), (before, after) in answers.items() if name == "retain"]
    return AnswerFigures(facts.records, facts.facts, guessed.before, facts.before, facts.after, len(unchanged), sum(unchanged))
