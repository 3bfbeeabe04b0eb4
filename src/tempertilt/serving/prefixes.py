"""Beginnings that prompts have in common, read once: a system message, the turns of a chat so far.

Two prompts of one client show what they share; the second leaves its keys, values and memory of that part behind, and later
prompts that begin so go on from there. Clients share nothing, so that nobody can tell from the time to a first token what
another one has asked. Only the engine's thread looks at them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

from tempertilt.models.cache import Prefix

LEAST = 16  # tokens worth keeping
COMPARED = 8  # latest prompts of a client
CLIENTS = 256  # whose latest prompts are known


class Prefixes:
    """What is kept of a model's prompts.

    Args:
        most_tokens: kept in all; those that were used longest ago go first.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most, self._tokens = most_tokens, 0
        self._kept: OrderedDict[tuple[str, tuple[int, ...]], Prefix] = OrderedDict()
        self._latest: OrderedDict[str, deque[list[int]]] = OrderedDict()

    def find(self, client: str, prompt: Sequence[int]) -> Prefix | None:
        """The longest part that a prompt begins with; at least one token of the prompt is left to be read."""
        found = None
        for key, part in self._kept.items():
            longer = found is None or part.length > len(found[1])
            if longer and key[0] == client and part.length < len(prompt) and tuple(prompt[: part.length]) == key[1]:
                found = key
        if found is None:
            return None
        self._kept.move_to_end(found)
        return self._kept[found]

    def worth(self, client: str, prompt: list[int]) -> int:
        """How many of its first tokens are to be kept, now that it was read; 0 for none. The prompt becomes one of the latest."""
        latest = self._latest.setdefault(client, deque(maxlen=COMPARED))
        self._latest.move_to_end(client)
        if len(self._latest) > CLIENTS:
            self._latest.popitem(last=False)
        common = max((_common(prompt, other) for other in latest), default=0)
        latest.append(prompt)
        length = min(common, len(prompt) - 1)
        known = (client, tuple(prompt[:length])) in self._kept
        return 0 if known or not LEAST <= length <= self._most else length

    def keep(self, client: str, tokens: Sequence[int], part: Prefix) -> None:
        """Keep a part."""
        self._kept[client, tuple(tokens)] = part
        self._tokens += part.length
        while self._tokens > self._most:
            self._tokens -= self._kept.popitem(last=False)[1].length


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)
