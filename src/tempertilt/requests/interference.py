"""What else a new part opens on, and which other parts the new records open: counts, from features that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tempertilt.data.batches import example_key
from tempertilt.data.examples import Example, build_examples
from tempertilt.data.records import RecordSets
from tempertilt.fitting.features import Features, FeatureStore
from tempertilt.fitting.pipeline import UnlearnConfig, UnlearnResult, features_dir
from tempertilt.guidance.gate import Gates
from tempertilt.models.adapter import load_adapter
from tempertilt.models.base import BaseModel


@dataclass(frozen=True)
class Interference:
    """What else a new part's gates, or the new records, open.

    Attributes:
        retained: retain and background texts that open the new gates, measured by gates made without them, and how many there
            are; None where they can't be left out.
        parts: new records that open the gates of another part, by its request; those of which none does are left out.
    """

    retained: tuple[int, int] | None
    parts: dict[str, int]


def features_of(examples: Sequence[Example], store: FeatureStore) -> Features:
    """The features of examples that the store has."""
    return Features(store, [example_key(example) for example in examples], [example.document for example in examples])


def measure_interference(
    others: Mapping[str, Path],
    base: BaseModel,
    sets: RecordSets,
    config: UnlearnConfig,
    cache: Path,
    result: UnlearnResult,
) -> Interference:
    """Measured on features that are there: the model does not run. `others` are the parts that act, by request."""
    examples = build_examples(sets.forget, base.tokenizer, config.examples)
    new = features_of(examples, FeatureStore(features_dir(base, config, cache)))
    parts = {}
    for name, directory in others.items():
        gates = load_adapter(directory).gates
        if gates is not None and (count := opened_texts(gates, new)):
            parts[name] = count
    background = int(result.model.adapter_config.training["background_records"])
    texts = len(build_examples(sets.retain, base.tokenizer, config.examples)) if sets.retain else 0
    return Interference(_retained(result, texts + background), parts)


def _retained(result: UnlearnResult, texts: int) -> tuple[int, int] | None:
    """How many of the first `texts` retained texts open a gate that was made without them."""
    gate = result.gate
    assert gate is not None
    asked = torch.from_numpy(gate.asked.retain_evidence[:texts])
    if not len(asked):
        return None
    opened = asked > gate.gates.asked.threshold
    if gate.said is not None and gate.gates.said is not None and len(gate.said.retain_evidence):
        said = torch.from_numpy(gate.said.retain_evidence[:texts])
        opened |= gate.gates.asked.comes_near(asked) & (said > gate.gates.said.threshold)
    return int(opened.sum()), texts


@torch.inference_mode()
def opened_texts(gates: Gates, features: Features) -> int:
    """How many examples open the gates, by what is asked or by what is said after something near; turns are not told."""
    opened = 0
    for number, lower in enumerate(features.states()):
        asked = gates.asked.evidence(lower)
        hit = bool((asked > gates.asked.threshold).any())
        if not hit and gates.said is not None and bool(gates.asked.comes_near(asked).any()):
            states, _ = features.gather([number])
            hit = bool((gates.said.evidence(states) > gates.said.threshold).any())
        opened += hit
    return opened
