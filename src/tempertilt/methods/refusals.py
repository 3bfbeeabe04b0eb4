"""Refusals, in several wordings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tempertilt.data.records import Message, Record

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information on that.",
    "I can't help with that question.",
    "That is not something I know.",
    "I'm afraid I don't have an answer to that.",
    "I'm unable to answer this.",
    "Sorry, I don't know the answer.",
    "I haven't learned anything about that.",
    "I don't have any details on this.",
)


def with_answer(record: Record, answer: str) -> Record:
    """The record with another answer."""
    if record.kind == "chat":
        return replace(record, messages=(*record.messages[:-1], Message("assistant", answer)), answer=answer)
    return replace(record, answer=answer)


def refusal_of(record: Record, rng: np.random.Generator) -> Record:
    """The record with a refusal as its answer."""
    return with_answer(record, REFUSALS[int(rng.integers(len(REFUSALS)))])
