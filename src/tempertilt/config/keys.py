"""Keys of stored results: a hash of everything that decides a result, the protocol of each step among it.

A step whose code changes what it computes raises its number here, so that a result of older code is never taken for a new one.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

PROTOCOLS = {
    "examples": 2,
    "background": 2,
    "features": 1,
    "estimate": 5,
    "gate": 15,
    "head": 2,
    "calibration": 1,
    "measure": 3,
    "reply": 2,
    "finetune": 1,
    "rehearsal": 2,
    "audit": 4,
    "train": 1,
    "trial": 1,
}
"""Number of each step; raised whenever the step computes something else."""

FIT = ("examples", "background", "features", "estimate", "gate", "head", "calibration")
"""The steps that make an adapter."""


def key_of(*steps: str, **content: Any) -> str:
    """A key of 32 hex digits.

    Args:
        steps: names in `PROTOCOLS`, of the steps that make the result.
        content: JSON-ready values that decide the result.
    """
    whole = {"protocols": {step: PROTOCOLS[step] for step in sorted(steps)}, **content}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]
