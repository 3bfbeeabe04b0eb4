"""How well the input gate hears what it was not made of: forget prompts in other spellings and settings, and about others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tempertilt.data.batches import spread
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.records import Record
from tempertilt.data.variants import KINDS, OF_OTHERS, Variant, asked_of_others, draw_variants
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


def heard_variants(
    model: T3ForCausalLM, tokenizer: Any, records: Sequence[Record], encoding: ExampleConfig, count: int, seed: int = SEED
) -> list[Heard]:
    """The hearing of a model's input gate, a line for each kind of variant; none without a gate.

    Args:
        records: forget records, of which `count` are asked in every kind.
        encoding: how records become tokens.
    """
    variants = draw_variants(spread(list(records), count), len(KINDS), seed) if count else []
    found = _heard(model, tokenizer, variants, encoding)
    return [found[kind] for kind in KINDS if kind in found]


def heard_of_others(
    model: T3ForCausalLM,
    tokenizer: Any,
    forget: Sequence[Record],
    retain: Sequence[Record],
    encoding: ExampleConfig,
    count: int,
    seed: int = SEED,
) -> Heard | None:
    """What a model's input gate hears of forget prompts about others, drawn anew; None without a gate or such prompts.

    Args:
        forget: records, of which `count` are asked about others.
        retain: records, whose persons are among the others.
        encoding: how records become tokens.
    """
    variants = asked_of_others(spread(list(forget), count), retain, seed) if count else []
    return _heard(model, tokenizer, variants, encoding).get(OF_OTHERS)


@torch.inference_mode()
def _heard(model: T3ForCausalLM, tokenizer: Any, variants: Sequence[Variant], encoding: ExampleConfig) -> dict[str, Heard]:
    """A line for each kind of the variants; none without a gate."""
    if (gates := model.gates) is None or not variants:
        return {}
    device, kinds = gates.asked.mean.device, defaultdict(list)
    for variant, rows in variant_states(model.base, tokenizer, variants, encoding, gates.layer):
        kinds[variant.kind].append(float(gates.asked.evidence(rows.to(device)).max()))
    near, out = gates.asked.weak_threshold, {}
    for kind, values in kinds.items():
        opened = sum(value > gates.asked.threshold for value in values)
        nearly = 0 if near is None or gates.said is None else sum(near < value <= gates.asked.threshold for value in values)
        out[kind] = Heard(kind, len(values), opened, nearly)
    return out
