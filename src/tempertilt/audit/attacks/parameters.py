"""Parameters of a request to a server."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tempertilt.audit.attempts import Attempt, Material, Subject, plain
from tempertilt.audit.registry import attack


@attack("parameters", who="an adversary", source="https://platform.openai.com/docs/api-reference/chat/create")
def parameters(subject: Subject, _material: Material, _rng: random.Random) -> Iterator[Attempt]:
    """The question as the record has it, with the words of a refusal banned by logit_bias (needs a server)."""
    yield plain(subject, "refusals banned", ban_refusals=True)
