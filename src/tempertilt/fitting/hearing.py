"""How well the input gate hears what it was not made of: forget prompts in other spellings and settings, drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tempertilt.data.batches import spread
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.records import Record
from tempertilt.data.variants import KINDS, draw_variants
from tempertilt.fitting.fit_gates import variant_states
from tempertilt.models.t3 import T3ForCausalLM

SEED = 70_001  # of the variants; those of the gates are drawn with another


class Heard(NamedTuple):
    """How many of the variants of one kind the gate hears.

    Attributes:
        kind: see `tempertilt.data.variants`.
        n: variants of this kind.
        opened: open the input gate.
        near: do not, but come so near that an answer which comes near the records opens it.
    """

    kind: str
    n: int
    opened: int
    near: int


@torch.inference_mode()
def heard_variants(
    model: T3ForCausalLM, tokenizer: Any, records: Sequence[Record], encoding: ExampleConfig, count: int, seed: int = SEED
) -> list[Heard]:
    """The hearing of a model's input gate, a line for each kind of variant; none without a gate.

    Args:
        records: forget records, of which `count` are asked in every kind.
        encoding: how records become tokens.
    """
    if model.gates is None or not count:
        return []
    gates, some = model.gates, spread(list(records), count)
    variants = draw_variants(some, len(KINDS), seed)
    device = gates.asked.mean.device
    heard = [
        (variant.kind, float(gates.asked.evidence(rows.to(device)).max()))
        for variant, rows in variant_states(model.base, tokenizer, variants, encoding, gates.layer)
    ]
    near = gates.asked.weak_threshold
    out = []
    for kind in KINDS:
        values = [value for other, value in heard if other == kind]
        opened = sum(value > gates.asked.threshold for value in values)
        nearly = 0 if near is None or gates.said is None else sum(near < value <= gates.asked.threshold for value in values)
        if values:
            out.append(Heard(kind, len(values), opened, nearly))
    return out
