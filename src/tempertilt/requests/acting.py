"""The parts of a ledger that act, as one model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from tempertilt.data.examples import ExampleConfig
from tempertilt.errors import LedgerError
from tempertilt.guidance.guidance import Guidance
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.composed import ComposedLM, load_part
from tempertilt.requests.adding import config_of
from tempertilt.requests.ledger import Ledger


class Acting(NamedTuple):
    """The ledger's version, and by request the parts that act, in the order in which they were added."""

    version: str
    parts: dict[str, Guidance]


def acting_parts(
    ledger: Ledger,
    scope: dict[str, str] | None = None,
    at: datetime | None = None,
    *,
    loaded: Mapping[str, Guidance] | None = None,
    check_base: bool = True,
) -> Acting:
    """The parts that act.

    Args:
        scope, at: where and when, as of `Ledger.active`.
        loaded: parts by request that need not be read again; a request's part never changes.
        check_base: refuse parts that were fitted on another base than the ledger's.

    Raises:
        LedgerError, AdapterError: the ledger or a part can't be read.
    """
    version, active = ledger.version, ledger.active(at, scope)
    while (now := ledger.version) != version:  # an event came in between
        version, active = now, ledger.active(at, scope)
    known, fingerprint = loaded or {}, ledger.settings["fingerprint"] if check_base else None
    parts = {part.request_id: known.get(part.request_id) or load_part(part.directory, fingerprint) for part in active}
    return Acting(version, parts)


def load_ledger_base(
    ledger: Ledger, model: str | None = None, peft_adapter: str | None = None, *, check_base: bool = True, **options: Any
) -> BaseModel:
    """The base model of a ledger, or the one that is given.

    Args:
        check_base: refuse a model that is not the ledger's.
        options: device, dtype, trust_remote_code, as in `load_base`.

    Raises:
        LedgerError: the model's fingerprint is not the one in the ledger.
    """
    name, own = ledger.base
    if model is None or model == name:
        peft_adapter = peft_adapter or own
    base = load_base(model or name, peft_adapter=peft_adapter, **options)
    if check_base and base.fingerprint != ledger.settings["fingerprint"]:
        raise LedgerError(
            f"the model {base.name!r} has fingerprint {base.fingerprint}; the ledger was made for {name!r} with "
            f"{ledger.settings['fingerprint']}. Give that model, or --ignore-base-mismatch if you know that they agree"
        )
    return base


def chats_of(ledger: Ledger) -> ExampleConfig:
    """How live chats become tokens: with the system prompt with which the parts were fitted."""
    return ExampleConfig.for_chats(system_prompt_of(ledger))


def system_prompt_of(ledger: Ledger) -> str | None:
    """The system prompt with which the parts were fitted; None is the default."""
    return config_of(ledger.settings).examples.system_prompt


def load_composed(
    ledger: Ledger,
    scope: dict[str, str] | None = None,
    *,
    model: str | None = None,
    peft_adapter: str | None = None,
    check_base: bool = True,
    **options: Any,
) -> tuple[ComposedLM, Any]:
    """A ledger's base under the parts that act now, and its tokenizer; arguments and errors as of the functions above."""
    base = load_ledger_base(ledger, model, peft_adapter, check_base=check_base, **options)
    return ComposedLM(base.model, acting_parts(ledger, scope, check_base=check_base).parts), base.tokenizer
