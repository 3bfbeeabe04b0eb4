"""The record's own prompt."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tempertilt.audit.attempts import Attempt, Material, Subject, plain
from tempertilt.audit.registry import attack


@attack("as recorded", who="a curious user", source="https://arxiv.org/abs/2401.06121")
def as_recorded(subject: Subject, _material: Material, _rng: random.Random) -> Iterator[Attempt]:
    """The question as the record has it."""
    yield plain(subject)
