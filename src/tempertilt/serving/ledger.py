"""A served model whose parts are those of a ledger: events are taken up while it serves.

The ledger's files are looked at every second, and at once on SIGHUP. When an event has come, or a day has begun on which a part
has expired, another model is put together on the same base, and requests that come then are answered by it. Answers that are
being written keep the model that they began with.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from tempertilt.errors import TemperTiltError
from tempertilt.guidance.guidance import Guidance
from tempertilt.models.composed import ComposedLM
from tempertilt.requests import Ledger, database, head
from tempertilt.requests.acting import Acting, acting_parts, chats_of, load_ledger_base
from tempertilt.serving.config import ServeConfig
from tempertilt.serving.models import ServedModel, serving_on
from tempertilt.serving.names import BASE

log = logging.getLogger("tempertilt")

POLL = 1.0  # seconds between looks at the files
FILES = (database.FILE, f"{database.FILE}-wal", head.FILE)


class LedgerModels(Mapping[str, ServedModel]):
    """The models that a server offers by name: the ledger's as it is now, and others beside it.

    As a context manager it looks for changes, in a thread of its own.

    Args:
        name: of the ledger's model.
        ledger: of its parts.
        scope: where the server is, as of `Ledger.active`.
        base: the frozen causal LM, which is the ledger's.
        serve: makes the served model of a name, a causal LM and a version.
        others: models by name that do not change.
        check_base: refuse parts that were fitted on another base.

    Raises:
        LedgerError, AdapterError: the ledger or a part can't be read.
    """

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        scope: dict[str, str],
        base: Any,
        serve: Callable[[str, Any, str], ServedModel],
        others: Mapping[str, ServedModel] | None = None,
        *,
        check_base: bool = True,
    ) -> None:
        self._name, self._ledger, self._scope, self._base, self._serve = name, ledger, scope, base, serve
        self._others, self._check_base = dict(others or {}), check_base
        self._lock, self._woken, self._ending = threading.Lock(), threading.Event(), False
        self._acting, self._complaint = Acting("", {}), ""
        self._thread = threading.Thread(target=self._watch, name="t3-ledger", daemon=True)
        self._served, self._seen, self._day = serve(name, ComposedLM(base, {}), ""), self._files(), _today()
        self._take_up()

    # --- as a mapping -----------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> ServedModel:
        if name != self._name:
            return self._others[name]
        if self._day != _today():
            self.refresh()
        return self._served

    def __iter__(self) -> Iterator[str]:
        return iter([self._name, *self._others])

    def __len__(self) -> int:
        return 1 + len(self._others)

    # --- changes ----------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take up what has changed. What can't be read is said in the log, and the parts that acted go on to act."""
        try:
            self._take_up()
            self._complaint = ""
        except (TemperTiltError, OSError) as error:
            text = f"the ledger could not be taken up, version {self._acting.version} is served on: {error}"
            if text != self._complaint:
                log.error("%s", text)
            self._complaint = text

    def wake(self) -> None:
        """Have the thread look at once."""
        self._woken.set()

    def _take_up(self) -> None:
        with self._lock:
            seen, day = self._files(), _today()
            acting = acting_parts(self._ledger, self._scope, loaded=self._acting.parts, check_base=self._check_base)
            before = self._acting
            if list(acting.parts) != list(before.parts):
                self._served = self._serve(self._name, ComposedLM(self._base, acting.parts), acting.version)
            elif acting.version != before.version:
                self._served = replace(self._served, version=acting.version)
            if acting != before:
                _report(before.parts, acting)
            self._acting, self._seen, self._day = acting, seen, day

    def _files(self) -> list[tuple[int, int, int] | None]:
        """What tells that an event has come."""
        return [_state(self._ledger.directory / name) for name in FILES]

    def _watch(self) -> None:
        while not self._ending:
            woken = self._woken.wait(POLL)
            self._woken.clear()
            if not self._ending and (woken or self._files() != self._seen or self._day != _today()):
                self.refresh()

    def __enter__(self) -> LedgerModels:
        self._thread.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._ending = True
        self.wake()
        self._thread.join()


def load_ledger_models(
    name: str,
    directory: str,
    scope: dict[str, str],
    config: ServeConfig,
    *,
    model: str | None = None,
    peft_adapter: str | None = None,
    check_base: bool = True,
    **options: Any,
) -> LedgerModels:
    """Load a ledger's base model and the parts that act.

    Args:
        name: by which requests call the model.
        directory: of the ledger.
        scope: where the server is, as of `Ledger.active`.
        config: whether the base is served, too, and how long a text may be.
        model, peft_adapter: instead of the ledger's own base.
        check_base: refuse a base that is not the ledger's.
        options: device, dtype, trust_remote_code, as in `tempertilt.models.base.load_base`.

    Raises:
        LedgerError, AdapterError, ModelError: something can't be loaded, or does not fit together.
    """
    ledger = Ledger(directory)
    base = load_ledger_base(ledger, model, peft_adapter, check_base=check_base, **options)
    examples, served = chats_of(ledger), serving_on(base, config.max_model_len)
    others = {BASE: served(BASE, base.model, examples)} if config.serve_base else {}

    def serve(name: str, model: Any, version: str) -> ServedModel:
        return served(name, model, examples, version)

    return LedgerModels(name, ledger, scope, base.model, serve, others, check_base=check_base)


def _report(before: Mapping[str, Guidance], acting: Acting) -> None:
    new = [name for name in acting.parts if name not in before]
    gone = [name for name in before if name not in acting.parts]
    changes = "".join(f"; {word}: {', '.join(names)}" for word, names in (("new", new), ("gone", gone)) if names)
    log.info("ledger version %s: parts that act: %d%s", acting.version, len(acting.parts), changes)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()
