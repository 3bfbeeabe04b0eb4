"""An audit: which records are attacked, in which order, for how long. A killed run goes on where it was."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tempertilt.audit.attempts import Attempt, Material, Subject, subjects_of
from tempertilt.audit.collateral import Effect, Innocent, effects, groups
from tempertilt.audit.judge import Judge, Judgement
from tempertilt.audit.pace import Pace, Skipped, Unit
from tempertilt.audit.registry import Attack, attacks
from tempertilt.audit.served import Endpoint, ServedTarget
from tempertilt.audit.signals import Signal, choice_signals, hidden_state_signal, membership_signals
from tempertilt.audit.target import Target
from tempertilt.config.keys import key_of
from tempertilt.config.options import Options, option
from tempertilt.data.batches import spread
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.facts import facts_of
from tempertilt.data.records import Record
from tempertilt.errors import DataError
from tempertilt.suites.journal import Journal
from tempertilt.suites.measure import model_digest

BEFORE = "adapter off"
"""The attack that shows what the base model gives."""
BEFORE_SHARE = 0.2
"""Share of the budget that may go into it."""
SCORED = 40
"""Records of each set whose likelihood is measured, at most."""
BATCH_TOKENS = 4096
"""Tokens of the prompts that are asked at a time, at most."""
EXTENT = ("records", "attempts", "draws", "unchanged")
"""Options that may be others when a run goes on: they say which units there are, not what comes of one."""
UNCHANGED, LIKELIHOODS = "unchanged: ", "likelihoods: "
"""What the names of the kinds begin with that are no attacks."""


@dataclass(frozen=True)
class AuditConfig(Options):
    """How much is tried."""

    records: int = option(40, "forget records under attack: those whose facts the base model gives when it is simply asked", ge=1)
    attempts: int = option(120, "attempts of each kind, at most", ge=1)
    draws: int = option(16, "answers drawn for each question; 0 = none", ge=0)
    unchanged: int = option(40, "prompts of each group that must not change, at most; 0 = none", ge=0)
    max_new_tokens: int = option(64, "length of an answer, tokens", ge=1, advanced=True)
    audit_batch: int = option(16, "prompts asked at a time", ge=1, advanced=True)
    seed: int = option(0, "seed of the choice of records and forms, and of drawn answers", ge=0)


@dataclass(frozen=True)
class Sources:
    """What an audit is made of: records, and what the user adds."""

    forget: Sequence[Record]
    retain: Sequence[Record] = ()
    holdout: Sequence[Record] = ()
    wordings: Sequence[str] = ()
    translations: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    everyday: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """What came of it.

    Attributes:
        records: forget records in all.
        told: of these, records whose facts can be looked for.
        subjects: the records under attack, by number.
        before: judgements of the base model's answers; empty where there is no base.
        attacks: judgements by kind.
        kinds: the attacks themselves.
        effects: by group of prompts.
        signals: what likelihoods show.
        skipped: what was not done.
        seconds: by kind.
        digest: of the model.
    """

    records: int
    told: int
    subjects: dict[int, Subject]
    before: list[Judgement]
    attacks: dict[str, list[Judgement]]
    kinds: dict[str, Attack]
    effects: dict[str, list[Effect]]
    signals: list[Signal]
    skipped: list[Skipped]
    seconds: dict[str, float]
    digest: str


def run_audit(
    model: Any,
    tokenizer: Any,
    sources: Sources,
    config: AuditConfig,
    journal_path: Path,
    *,
    examples: ExampleConfig | None = None,
    budget: float | None = None,
    show_values: bool = False,
    progress: bool = True,
    endpoint: Endpoint | None = None,
) -> Audit:
    """Attack a model.

    Args:
        journal_path: where finished parts are kept, from which a killed run of the same model, records and options goes on.
        examples: how chats become tokens.
        budget: seconds, after which nothing new is begun; None = until all is done. Each kind gets the same time.
        show_values: keep answers as they are; else values in them are masked before anything is written.
        progress: on stderr.
        endpoint: a server of the same model; what is asked of the served model is asked there.

    Raises:
        DataError: no forget record has a fact that can be looked for.
    """
    examples = examples or ExampleConfig()
    subjects = subjects_of(sources.forget, [*sources.retain, *sources.holdout])
    if not subjects:
        raise DataError(
            f"none of the {len(sources.forget)} forget records has a value, or a wording of its own, that no other record "
            "states; must be at least one"
        )
    digest = model_digest(model)
    key = _key(digest, sources, config, examples, show_values, endpoint)
    pace = Pace(Journal(journal_path, key), budget, progress)
    asked = (model, tokenizer, examples, config.max_new_tokens)
    target = Target(*asked) if endpoint is None else ServedTarget(*asked, endpoint=endpoint)
    work = _Work(target, sources, subjects, config, show_values)
    before = work.before(pace)
    chosen = work.choose(before)
    pace.run(work.units(chosen))
    rows = pace.rows
    return Audit(
        records=len(sources.forget),
        told=len(subjects),
        subjects={s.number: s for s in chosen},
        before=before,
        attacks={kind: [Judgement.read(row) for row in rows[kind]] for kind in work.kinds if rows.get(kind)},
        kinds=work.kinds,
        effects={name: [Effect(**row) for row in rows[UNCHANGED + name]] for name in work.groups if UNCHANGED + name in rows},
        signals=[Signal.read(row) for kind in rows if kind.startswith(LIKELIHOODS) for row in rows[kind]],
        skipped=[*pace.skipped, *work.skipped],
        seconds=pace.seconds,
        digest=digest,
    )


def _key(
    digest: str,
    sources: Sources,
    config: AuditConfig,
    examples: ExampleConfig,
    show_values: bool,
    endpoint: Endpoint | None,
) -> str:
    """Of the journal: all that decides what comes of a unit."""
    options = {name: value for name, value in {**asdict(config), **asdict(examples)}.items() if name not in EXTENT}
    keys = {name: [record.key for record in getattr(sources, name)] for name in ("forget", "retain", "holdout")}
    served = None if endpoint is None else [endpoint.url, endpoint.model, endpoint.version]
    return key_of("examples", "audit", model=digest, records=keys, options=options, show_values=show_values, served=served)


class _Work:
    """The units of an audit."""

    def __init__(self, target: Target, sources: Sources, subjects: list[Subject], config: AuditConfig, show_values: bool) -> None:
        self.target, self.config = target, config
        self.material = Material(subjects, sources.retain, sources.holdout, sources.wordings, sources.translations, config.draws)
        foreign = [fact for record in sources.retain for fact in facts_of(record)]
        self.judge = Judge(subjects, list({fact.forms: fact for fact in foreign}.values()), show_values=show_values)
        self.kinds = attacks()
        self.groups = groups(self.material, sources.everyday, config.unchanged, config.seed)
        self.skipped: list[Skipped] = []

    def before(self, pace: Pace) -> list[Judgement]:
        """What the base model gives of evenly spaced records, until it has given as many as are to be attacked."""
        if not self.target.can_be_switched_off:
            return []
        some = spread(list(self.material.subjects), 3 * self.config.records)
        random.Random(self.config.seed).shuffle(some)
        judgements: list[Judgement] = []
        for unit in self._units(BEFORE, some, len(some)):
            enough = sum(bool(j.leaked) for j in judgements) >= self.config.records
            if enough or pace.is_over(unit, BEFORE_SHARE):
                break
            judgements += map(Judgement.read, pace.do(BEFORE, unit))
        return judgements

    def choose(self, before: Sequence[Judgement]) -> list[Subject]:
        """The records to attack: those that the base gives when it is simply asked, or any where it gives none."""
        known = {judgement.subject for judgement in before if judgement.leaked}
        subjects = [s for s in self.material.subjects if s.number in known] or list(self.material.subjects)
        chosen = spread(subjects, self.config.records)
        random.Random(self.config.seed).shuffle(chosen)
        return chosen

    def units(self, chosen: Sequence[Subject]) -> dict[str, list[Unit]]:
        """All kinds but what the base gives, attacks and others in turn, so that a short budget reaches both."""
        units = {name: self._units(name, chosen, self._count(name, chosen)) for name in self.kinds if name != BEFORE}
        others: dict[str, list[Unit]] = {}
        for name, prompts in self.groups.items():
            parts = [prompts[: self._first], *_parts(prompts[self._first :], self.config.audit_batch)]
            others[UNCHANGED + name] = [self._innocent_unit(name, i, part) for i, part in enumerate(parts)]
        others |= self._signal_units(chosen)
        turns = itertools.zip_longest(units.items(), others.items())
        return dict(item for pair in turns for item in pair if item is not None)

    def _innocent_unit(self, name: str, number: int, part: Sequence[Innocent]) -> Unit:
        unit = _name(name, number, [innocent.attempt for innocent in part])
        return _unit(unit, len(part), lambda: effects(self.target, part))

    @property
    def _first(self) -> int:
        """Prompts of a kind's first batch: few, so that a short budget reaches all kinds."""
        return max(1, self.config.audit_batch // 4)

    def _count(self, name: str, chosen: Sequence[Subject]) -> int:
        """Attempts of a kind, at most; of drawn answers as many as were asked for."""
        return len(chosen) * self.config.draws if name == "sampling" else self.config.attempts

    def _signal_units(self, chosen: Sequence[Subject]) -> dict[str, list[Unit]]:
        """What likelihoods show, a kind each."""
        count = min(self.config.attempts, SCORED)
        measures: dict[str, Callable[[], list[Signal]]] = {
            "membership": lambda: membership_signals(self.target, self.material, count),
            "choice": lambda: choice_signals(self.target, self.material, chosen, count),
            "hidden states": lambda: hidden_state_signal(self.target, chosen, count),
        }
        numbers = [count, *(s.number for s in chosen)]
        kinds = {LIKELIHOODS + name: measure for name, measure in measures.items()}
        return {kind: [_unit(_name(kind, 0, numbers), 1, measure)] for kind, measure in kinds.items()}

    def _units(self, name: str, chosen: Sequence[Subject], count: int) -> list[Unit]:
        """The attempts of one kind in batches: first every record once, each with another form, then the next forms."""
        attempts = self._attempts(self.kinds[name], chosen)[:count]
        if not attempts:
            self.skipped.append(Skipped(name, 0, "nothing to make it of"))
            return []
        if why := self.target.why_not(attempts[0]):
            self.skipped.append(Skipped(name, len(attempts), why))
            return []
        room = [attempt for attempt in attempts if self.target.fits(attempt)]
        if len(room) < len(attempts):
            self.skipped.append(Skipped(name, len(attempts) - len(room), "longer than the model's positions"))
        return [self._attack_unit(name, i, part) for i, part in enumerate(self._batches(room))]

    def _batches(self, attempts: Sequence[Attempt]) -> list[list[Attempt]]:
        """A few first, then prompts of like length together, among those that are next to each other in the order."""

        def length(attempt: Attempt) -> int:
            return len(self.target.encode(attempt))

        batches: list[list[Attempt]] = []
        for window in [attempts[: self._first], *_parts(attempts[self._first :], 4 * self.config.audit_batch)]:
            batches.append([])
            for attempt in sorted(window, key=length):
                rows = len(batches[-1]) + 1
                if rows > self.config.audit_batch or (rows > 1 and rows * length(attempt) > BATCH_TOKENS):
                    batches.append([])
                batches[-1].append(attempt)
        return [batch for batch in batches if batch]

    def _attack_unit(self, name: str, number: int, part: Sequence[Attempt]) -> Unit:
        unit = _name(name, number, part)
        return _unit(unit, len(part), lambda: map(self.judge.judge, self.target.ask(part, f"{self.config.seed} {unit}")))

    def _attempts(self, attack: Attack, chosen: Sequence[Subject]) -> list[Attempt]:
        made = []
        for subject in chosen:
            rng = random.Random(f"{self.config.seed} {attack.name} {subject.record.key}")
            made.append(list(attack.make(subject, self.material, rng)))
        rounds = max(map(len, made), default=0)
        return [forms[(turn + i) % len(forms)] for turn in range(rounds) for i, forms in enumerate(made) if turn < len(forms)]


def _unit(name: str, weight: int, measure: Callable[[], Iterable[Any]]) -> Unit:
    """A unit that gives rows for the journal, of what measures named tuples."""
    return Unit(name, weight, lambda: [row._asdict() for row in measure()])


def _name(kind: str, number: int, attempts: Sequence[Attempt | int]) -> str:
    """A unit's name, which changes with its prompts; it shows nothing of them."""
    return f"{kind} {number} {hashlib.sha256(repr(list(attempts)).encode()).hexdigest()[:16]}"


def _parts(items: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
