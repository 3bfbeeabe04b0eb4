"""The base model."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tempertilt.audit.attempts import Attempt, Material, Subject, plain
from tempertilt.audit.registry import attack


@attack("adapter off", who="an adversary", source="https://arxiv.org/abs/2309.17410", limit=True)
def adapter_off(subject: Subject, _material: Material, _rng: random.Random) -> Iterator[Attempt]:
    """The question as the record has it, with the adapter switched off."""
    yield plain(subject, version="off")
