"""Made-up rows of a benchmark."""

from __future__ import annotations

import math

import numpy as np

from tempertilt.bench.scores import Figure, Row


def make_row(name: str, mean: float, error: float, seconds: float, **fields: object) -> Row:
    """A row whose score, utility and distances are all `mean`, with one standard error; draws of different names differ."""
    draws = mean + error * np.random.default_rng(len(name) + ord(name[0])).choice([-1.0, 1.0], 4000)
    figure = Figure(mean, mean - 1.96 * error, mean + 1.96 * error, math.nan, math.nan, 1, error, 0.0, draws)
    content = {
        "name": name,
        "method": "t3" if name == "t3" else "NPO",
        "label": "beta 1",
        "options": {},
        "seeds": (0,),
        "figures": dict.fromkeys(("score", "utility", "ks_distance", "forget_quality"), figure),
        "costs": {"unlearn_seconds": seconds, "decoding": 1.0, "trained_parameters": 1e7},
        "selection": (("beta 1", mean, ""), ("beta 2", None, "killed")),
        "failures": (),
    }
    return Row(**{**content, **fields})  # type: ignore[arg-type]
