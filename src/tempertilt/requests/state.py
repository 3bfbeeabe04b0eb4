"""What the events say: the state of each request, worked out anew and stored nowhere."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timezone
from pathlib import Path

from tempertilt.config.options import Options, option
from tempertilt.errors import ConfigError, LedgerError
from tempertilt.requests.events import Event

ACTIVE, REVOKED, REPLACED = "active", "revoked", "replaced"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Details(Options):
    """What a request is, besides its records."""

    id: str = option("", "name of the request, as REQ-2026-017; letters, digits, dots, dashes")
    subject: str | None = option(None, "whom the records are about; only a keyed hash of it is kept")
    requested_by: str | None = option(None, "who asked for it, as a case number; kept as it is")
    reason: str | None = option(None, "why; kept as it is")
    scope: str = option("", "where alone it acts, as tenant=acme,region=eu; empty = everywhere")
    reply: str | None = option(None, "what is said where its gates are open: guess, or a text (default: the ledger's)")
    expires: str | None = option(None, "last day on which it acts, as 2027-01-31 (UTC)")
    note: str | None = option(None, "anything else; kept as it is")
    replace: str | None = option(None, "request about the same subject that this one takes the place of")
    extend: str | None = option(None, "request about the same subject that stays beside this one")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.id)
        parse_scope(self.scope)
        if self.expires is not None:
            parse_day(self.expires)
        if self.replace and self.extend:
            raise ConfigError("--replace and --extend are both given; must be one: the other request goes, or it stays")


@dataclass(frozen=True)
class RequestState:
    """A request as it is after all events.

    Attributes:
        id: its name.
        state: active, revoked or replaced.
        has_files: whether the files of its part are there.
        added, by: time (UTC) and person of the event that added it.
        expires: last day on which it acts.
        scope: where alone it acts; empty = everywhere.
        subject: keyed hash of whom the records are about, None if not given.
        records: keyed hashes of its records.
        files: SHA-256 of each file of its part.
        details: what else was said when it was added.
    """

    id: str
    state: str
    has_files: bool
    added: str
    by: str
    expires: date | None
    scope: dict[str, str]
    subject: str | None
    records: frozenset[str]
    files: dict[str, str]
    details: dict[str, object] = field(default_factory=dict)

    def expired(self, at: datetime) -> bool:
        """Whether its last day is over."""
        return self.expires is not None and at.astimezone(timezone.utc).date() > self.expires

    def status(self, at: datetime) -> str:
        """Its state in one word, "expired" among them."""
        return "expired" if self.state == ACTIVE and self.expired(at) else self.state

    def acts_in(self, scope: Mapping[str, str]) -> bool:
        """Whether it acts in a place: a part stays out only where the place says that it is another one."""
        return all(scope.get(name, value) == value for name, value in self.scope.items())


@dataclass(frozen=True)
class ActivePart:
    """A part that acts: the request's name, the adapter's folder, and where alone it acts."""

    request_id: str
    directory: Path
    scope: dict[str, str]


def states_of(events: Iterable[Event]) -> dict[str, RequestState]:
    """The requests by their names, in the order in which they were added.

    Raises:
        LedgerError: an event is about a request that there is not.
    """
    states: dict[str, RequestState] = {}
    for event in events:
        if event.kind == "init":
            continue
        try:
            if event.kind == "add":
                states[event.request] = _added(event)
                if other := event.payload["replaces"]:
                    states[other] = replace(states[other], state=REPLACED, has_files=False)
            elif event.kind == "revoke":
                kept = bool(event.payload["files_kept"])
                states[event.request] = replace(states[event.request], state=REVOKED, has_files=kept)
            else:
                day = _day(event.payload["expires"])
                states[event.request] = replace(states[event.request], state=ACTIVE, expires=day)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise LedgerError(f"event {event.sequence} ({event.kind} {event.request!r}) makes no sense: {error!r}") from error
    return states


def same_subject(states: Iterable[RequestState], subject: str | None, beside: Collection[object] = ()) -> str | None:
    """A request about the same subject that is active; None where there is none, or one of those that it may act `beside`."""
    others = [state.id for state in states if state.subject is not None and state.subject == subject and state.state == ACTIVE]
    return others[0] if others and not set(others) & set(beside) else None


def _added(event: Event) -> RequestState:
    payload = event.payload
    return RequestState(
        id=event.request,
        state=ACTIVE,
        has_files=True,
        added=event.time,
        by=event.by,
        expires=_day(payload["expires"]),
        scope=dict(payload["scope"]),
        subject=payload["subject"],
        records=frozenset(payload["records"]),
        files=dict(payload["files"]),
        details={name: payload[name] for name in ("requested_by", "reason", "reply", "note", "replaces", "extends")},
    )


def check_name(name: str) -> None:
    """Raise `ConfigError` unless a request can have this name, which is that of a folder, too."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--id is {name!r}; must be letters, digits, dots, dashes or underscores, as REQ-2026-017")


def parse_scope(text: str) -> dict[str, str]:
    """The names and values of `tenant=acme,region=eu`; `ConfigError` if it is not like this."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    scope = {name.strip(): value.strip() for name, _, value in pairs}
    if not all(name and value for name, value in scope.items()) or len(scope) < len(pairs):
        raise ConfigError(f"scope is {text!r}; must be as tenant=acme,region=eu, each name once")
    return scope


def parse_day(text: str) -> date:
    """A day as 2027-01-31; `ConfigError` if it is none."""
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"expires is {text!r}; must be a day as 2027-01-31") from error


def _day(text: str | None) -> date | None:
    return None if text is None else date.fromisoformat(text)
