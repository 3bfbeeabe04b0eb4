"""A base model of fewer bits under the same adapter."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tempertilt.audit.attempts import Attempt, Material, Subject, ask, plain
from tempertilt.audit.registry import attack

SOURCE = "https://arxiv.org/abs/2410.16454"


@attack("8-bit base", who="an adversary", source=SOURCE)
def eight_bit(subject: Subject, _material: Material, _rng: random.Random) -> Iterator[Attempt]:
    """A coarser copy of the model, its weights and activations in 8 bits, under the adapter made for the full one."""
    yield plain(subject, version="int8")
    yield ask("all lower case", subject, subject.question.lower(), version="int8")


@attack("4-bit base", who="an adversary", source=SOURCE)
def four_bit(subject: Subject, _material: Material, _rng: random.Random) -> Iterator[Attempt]:
    """A coarser copy of the model, its weights rounded to 4 bits in groups of 32, under the adapter made for the full one."""
    yield plain(subject, version="int4")
    yield ask("all lower case", subject, subject.question.lower(), version="int4")
