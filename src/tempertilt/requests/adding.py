"""From the records of one request to its part: the model runs over the new records, what was retained before is read.

Everything about the records is made in the ledger's work folder, which is deleted at the end. What stays is the adapter, without
the report's answers, and keyed hashes.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tempertilt.data.batches import example_key
from tempertilt.data.examples import Example, build_examples
from tempertilt.data.fields import Columns
from tempertilt.data.records import Record, RecordSets, check_records, load_all
from tempertilt.errors import ConfigError, LedgerError
from tempertilt.fitting.background import background_examples, drop_background
from tempertilt.fitting.features import Features, FeatureStore, extract_features
from tempertilt.fitting.pipeline import unlearn
from tempertilt.fitting.readers import load_readers
from tempertilt.fitting.recipe import METHODS, UnlearnConfig, features_dir, gate_layer, within_context
from tempertilt.fitting.result import REPORT, UnlearnResult
from tempertilt.models.adapter import CARD, CONFIG, WEIGHTS, read_config
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.replies import ReplyConfig
from tempertilt.requests.events import Event
from tempertilt.requests.exposure import Exposure, check_kept_texts
from tempertilt.requests.interference import Interference, features_of, measure_interference, stored_features
from tempertilt.requests.signing import Author, public_key_of
from tempertilt.requests.state import ACTIVE, Details, RequestState, parse_scope, same_subject
from tempertilt.requests.work import CACHE, READERS, work_folder
from tempertilt.storage import file_sha256, make_dir, remove_directory, write_text

if TYPE_CHECKING:
    from tempertilt.requests.ledger import Ledger


@dataclass(frozen=True)
class Added:
    """What adding a request gave: its event, the fit with what was measured, interference, and wall seconds in all."""

    event: Event
    result: UnlearnResult
    interference: Interference
    seconds: float


def add_request(
    ledger: Ledger,
    forget: Sequence[Record],
    details: Details,
    author: Author,
    *,
    base: BaseModel | None = None,
    holdout: Sequence[Record] = (),
    key_file: Path | None = None,
    evidence_dir: Path | None = None,
    drop_overlap: bool = False,
    progress: bool = True,
    **options: Any,
) -> Added:
    """Make the part of a new request and add its event.

    Args:
        forget: the request's records.
        details: what else the ledger keeps of it.
        author: who adds it.
        base: the ledger's model; loaded if not given, when it is known that the ledger allows the request.
        holdout: records like these that the model has never seen, for the estimate.
        key_file: of the ledger's key; where `Ledger.create` made it, if not given.
        evidence_dir: folder for the whole report, answers in clear among it, under the request's name; not kept if not given.
        drop_overlap: drop records that occur twice.
        options: device, dtype, trust_remote_code, as in `load_base`, where `base` is not given.

    Raises:
        LedgerError: the name is taken, a request about the same subject acts, or the model is another one than the ledger's.
        DataError: the records are not usable, or what is said of the request holds a name or value of them.
        ModelError, AdapterError: the model can't be loaded, or a part can't be read.
    """
    started = time.perf_counter()
    key, config = ledger.key(key_file), _config(ledger.settings, details)
    subject = None if details.subject is None else key.subject(details.subject)
    check_kept_texts(details, forget)
    author.signer(public_key_of(ledger.settings))
    with work_folder(ledger.directory) as work:
        states = {state.id: state for state in ledger.requests()}
        _check(states, details, subject)
        base = base or load_base(ledger.base[0], peft_adapter=ledger.base[1], **options)
        _check_base(base, ledger.settings)
        hashes = key.records(forget)
        covered = {*hashes, *(record for state in states.values() if state.state == ACTIVE for record in state.records)}
        retain = [record for record in retain_records(ledger.settings) if key.record(record) not in covered]
        sets = check_records(forget, retain, holdout, drop_overlap=drop_overlap)
        others = {part.request_id: part.directory for part in ledger.active() if part.request_id != details.replace}
        result, interference = _make_part(ledger.directory, work, base, sets, config, others, progress)
        evidence = keep_numbers(work / "part", None if evidence_dir is None else evidence_dir / details.id)
        payload = {
            "subject": subject,
            "records": hashes,
            "retain": key.set(sets.retain),
            "holdout": key.set(sets.holdout),
            "requested_by": details.requested_by,
            "reason": details.reason,
            "note": details.note,
            "scope": parse_scope(details.scope),
            "reply": details.reply,
            "expires": details.expires,
            "replaces": details.replace,
            "extends": details.extend,
            "deletes": [details.replace] if details.replace else [],
            "interference": asdict(interference),
            "evidence": evidence,
            "files": {path.name: file_sha256(path) for path in sorted((work / "part").iterdir())},
        }

        def checked(states: Mapping[str, RequestState]) -> dict[str, Any]:
            _check(states, details, subject)
            return payload

        event = ledger.write("add", details.id, checked, author, moves=work / "part")
    return Added(event, result, interference, time.perf_counter() - started)


def _make_part(
    directory: Path,
    work: Path,
    base: BaseModel,
    sets: RecordSets,
    config: UnlearnConfig,
    others: Mapping[str, Path],
    progress: bool,
) -> tuple[UnlearnResult, Interference]:
    """Make the part in `work / "part"`, of what the ledger in `directory` has in its cache and of the new records.

    Args:
        others: folders of the parts that will act beside it, by request.
    """
    readers = load_readers(directory / READERS)
    retained, _ = prepare_cache(base, config, sets.retain, directory / CACHE, sets.forget, progress=progress)
    shutil.copytree(directory / CACHE, work / CACHE, copy_function=_link)
    result = unlearn(base, sets, work / "part", config, cache=work / CACHE, readers=readers, progress=progress)
    examples = build_examples(sets.forget, base.tokenizer, within_context(config, base).examples)
    forget = stored_features(examples, features_dir(base, config, work / CACHE))
    return result, measure_interference(others, forget, result, len(retained))


def _check(states: Mapping[str, RequestState], details: Details, subject: str | None) -> None:
    """Raise `LedgerError` if the ledger does not allow the request."""
    if details.id in states:
        raise LedgerError(f"request {details.id} is there already ({states[details.id].state}); must be another name")
    for flag, other in (("--replace", details.replace), ("--extend", details.extend)):
        if other is None:
            continue
        if other not in states or states[other].state != ACTIVE:
            raise LedgerError(f"{flag} is {other!r}; must be a request that is active")
        if None not in (subject, states[other].subject) and subject != states[other].subject:
            raise LedgerError(f"{flag} is {other!r}, which is about another subject; must be one about the same")
    others = [state for state in states.values() if state.id != details.replace]
    if other := same_subject(others, subject, [details.extend]):
        raise LedgerError(
            f"request {other} is about the same subject: say --replace {other} to have the new one take its place, or "
            f"--extend {other} to have both act"
        )


def _check_base(base: BaseModel, settings: Mapping[str, Any]) -> None:
    if base.fingerprint != settings["fingerprint"]:
        raise LedgerError(
            f"the model {base.name!r} has fingerprint {base.fingerprint}; the ledger was made for {settings['model']!r} with "
            f"{settings['fingerprint']}: its weights have changed. Make a new ledger for it"
        )


# --- the ledger's settings ------------------------------------------------------------------------------------------------


def first_payload(
    base: BaseModel, retain: Sequence[str], config: UnlearnConfig | None, columns: Columns | None
) -> dict[str, Any]:
    """What the first event says of the model and of how requests are unlearned.

    Raises:
        ConfigError: parts could not act side by side, for want of gates; or there is nothing to retain.
    """
    config = config or METHODS["t3"]
    if not config.gate.gate:
        raise ConfigError("there is no gate; a ledger's parts need one each: without it, each would act everywhere")
    if not retain and not config.background.background:
        raise ConfigError("there is nothing to retain: give retain records, or background text (--background N)")
    return {
        "model": base.name,
        "peft_adapter": base.peft_adapter,
        "fingerprint": base.fingerprint,
        "retain": [str(Path(source).absolute()) if Path(source).exists() else str(source) for source in retain],
        "columns": dict(columns or {}),
        "config": asdict(config),
    }


def retain_records(settings: Mapping[str, Any]) -> list[Record]:
    """The retain records, read where the first event says."""
    return load_all(settings["retain"], columns=settings["columns"])


def config_of(settings: Mapping[str, Any]) -> UnlearnConfig:
    """How the ledger's requests are unlearned."""
    parts = {field.name: type(getattr(METHODS["t3"], field.name)) for field in fields(UnlearnConfig)}
    try:
        return UnlearnConfig(**{name: kind(**settings["config"][name]) for name, kind in parts.items()})
    except TypeError as error:
        raise LedgerError(f"the ledger's options can't be read: {error}; it was made by another version of tempertilt") from error


def _config(settings: Mapping[str, Any], details: Details) -> UnlearnConfig:
    """The ledger's options for one request.

    The threshold of the input gate is not lowered, however few the records, and rises as far as retain text asks for: what many
    parts open by mistake adds up. For the same reason the output gate opens nothing by itself.
    """
    config = config_of(settings)
    gate = replace(config.gate, asked_least=config.gate.asked_threshold, heard_share=0.0, sure_threshold=1.0)
    config = replace(config, gate=gate)
    return config if details.reply is None else replace(config, reply=ReplyConfig(details.reply))


# --- what is retained, and what is not kept -------------------------------------------------------------------------------


def prepare_cache(
    base: BaseModel,
    config: UnlearnConfig,
    retain: Sequence[Record],
    cache: Path,
    forget: Sequence[Record] = (),
    *,
    progress: bool = True,
) -> tuple[list[Example], Features]:
    """Have features of the retain records and of background text in a cache, and nothing else: nothing about `forget`.

    What is there is not run again. Background text about the forget records is deleted, and not replaced: the base could write
    of what was forgotten before. It is written only where there is none for this model and type, or it is damaged.

    Returns:
        The examples of both, and their features.
    """
    config = within_context(config, base)
    examples = build_examples(retain, base.tokenizer, config.examples) if retain else []
    background: list[Example] = []
    if config.background.background:
        options: dict[str, Any] = {"fingerprint": base.fingerprint, "cache": cache, "progress": progress}
        written = partial(background_examples, base.model, base.tokenizer, [], config.background, config.examples, **options)
        background = written()
        if forget:
            about = build_examples(forget, base.tokenizer, config.examples)
            drop_background(cache, base.tokenizer, about, config.examples, Exposure(forget).of)
            background = written()  # what is left of it
    directory = features_dir(base, config, cache)
    for other in directory.parent.glob("*"):
        if other != directory:  # of another device or type: nobody would take out what is to be forgotten
            remove_directory(other)
    store = FeatureStore(directory)
    store.keep({example_key(example) for example in (*examples, *background)})
    for some in (examples, background):
        if some:
            layer = gate_layer(base, config)
            extract_features(base.model, some, store, config.features, state_layer=layer, progress=progress)
    return [*examples, *background], features_of([*examples, *background], store)


def _link(source: str, target: str) -> None:
    """The same file in another place; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def keep_numbers(part: Path, evidence: Path | None) -> str | None:
    """Take out of an adapter's report what holds text of the records, and out of its configuration a hash that has no key.

    The base's tokenizer goes, too: it would be in every part.

    Args:
        part: the adapter's folder.
        evidence: where the whole report goes; None = nowhere.

    Returns:
        The SHA-256 of the whole report where it was kept.
    """
    text = (part / REPORT).read_text(encoding="utf-8")
    digest = None
    if evidence is not None:
        write_text(make_dir(evidence) / REPORT, text)
        digest = file_sha256(evidence / REPORT)
    report = json.loads(text)
    del report["answers"]
    if report["facts"] is not None:
        report["facts"]["leaks"] = [leak["record"] for leak in report["facts"]["leaks"]]
    write_text(part / REPORT, json.dumps(report, indent=2) + "\n")
    for path in part.iterdir():
        if path.name not in (CONFIG, WEIGHTS, CARD, REPORT):
            path.unlink()
    config = read_config(part)
    training = {name: value for name, value in config.training.items() if name != "key"}
    write_text(part / CONFIG, json.dumps(asdict(replace(config, training=training)), indent=2, sort_keys=True) + "\n")
    return digest
