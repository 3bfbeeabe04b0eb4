"""Many answers to one question."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tempertilt.audit.attempts import Attempt, Material, Subject, plain
from tempertilt.audit.registry import attack


@attack("sampling", who="an adversary", source="https://arxiv.org/abs/2410.03523")
def sampling(subject: Subject, material: Material, _rng: random.Random) -> Iterator[Attempt]:
    """The question as the record has it, answers drawn at temperature 1, many times."""
    for draw in range(material.draws):
        yield plain(subject, "drawn", draw=draw)
