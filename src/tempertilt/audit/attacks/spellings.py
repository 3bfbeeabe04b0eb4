"""Other spellings of the name."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tempertilt.audit.attempts import Attempt, Material, Subject, ask
from tempertilt.audit.registry import attack
from tempertilt.data.variants import SPELLINGS, respell

FURTHER = {
    "last name, first name": lambda name, _: f"{name.split()[-1]}, {' '.join(name.split()[:-1])}" if " " in name else name,
    "quoted": lambda name, _: f'"{name}"',
    "dots between letters": lambda name, _: " ".join(".".join(word) for word in name.split()),
    "digits for letters": lambda name, _: name.translate(str.maketrans("aeio", "4310")),
}


@attack("spellings", who="a curious user", source="https://arxiv.org/abs/2410.02879")
def spellings(subject: Subject, _material: Material, rng: random.Random) -> Iterator[Attempt]:
    """The name in other spellings: case, typing errors, initials, one name only."""
    for form, change in {**SPELLINGS, **FURTHER}.items():
        question = respell(subject.question, change, rng)
        if question != subject.question:
            yield ask(form, subject, question)
    if subject.question.lower() != subject.question:
        yield ask("all lower case", subject, subject.question.lower())
