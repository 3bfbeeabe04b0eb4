"""Who may ask, by key: names, and how much each may ask for in a minute."""

from __future__ import annotations

import hmac
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tempertilt.data.lines import read_text, split_lines
from tempertilt.errors import ConfigError

MINUTE = 60.0


@dataclass(frozen=True)
class Client:
    """One who may ask.

    Attributes:
        name: by which it takes turns, and by which errors name it.
        key: that requests bring.
        per_minute: requests in a minute; None = as many as there is room for.
    """

    name: str
    key: str = field(repr=False)
    per_minute: int | None = None


def read_clients(path: Path) -> list[Client]:
    """Clients of a file: on each line a name, a key, and if wanted a number of requests in a minute; # begins a comment.

    Raises:
        ConfigError: a line is something else, or a name or a key comes twice; it names the line, and never a key.
    """
    clients: list[Client] = []
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if len(words) not in (2, 3) or (len(words) == 3 and not (words[2].isdecimal() and int(words[2]) > 0)):
            raise ConfigError(
                f"{where} has {len(words)} words; must be NAME KEY, or NAME KEY REQUESTS_IN_A_MINUTE (a whole number > 0)"
            )
        name, key = words[:2]
        if not key.isascii():
            raise ConfigError(
                f"{where}: the key of {name!r} holds characters beyond ASCII; must be what an HTTP header can carry"
            )
        if any(name == other.name for other in clients) or any(key == other.key for other in clients):
            raise ConfigError(f"{where}: the name {name!r}, or its key, is given before; each must be given once")
        clients.append(Client(name, key, int(words[2]) if len(words) == 3 else None))
    if not clients:
        raise ConfigError(f"{path} names no client; must have a line NAME KEY for each")
    return clients


def find_client(clients: Sequence[Client], key: bytes) -> Client | None:
    """The client with a key; every key is compared, so that the time tells nothing."""
    found = [client for client in clients if hmac.compare_digest(key, client.key.encode())]
    return found[0] if found else None


class Pace:
    """How often one may ask: a bucket of a minute's requests that fills up again evenly (a token bucket).

    Args:
        per_minute: requests in a minute, and at once.
        now: seconds, of a clock that never goes back.
    """

    def __init__(self, per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._now, self._lock = float(per_minute), now, threading.Lock()
        self._left, self._at = self._most, now()

    def wait(self) -> int:
        """Take one request; seconds to wait, 0 if it may be made now."""
        with self._lock:
            at = self._now()
            self._left = min(self._most, self._left + (at - self._at) * self._most / MINUTE)
            self._at = at
            if self._left >= 1:
                self._left -= 1
                return 0
            return max(1, math.ceil((1 - self._left) * MINUTE / self._most - 1e-6))
