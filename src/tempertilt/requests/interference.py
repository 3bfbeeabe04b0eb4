"""What else a new part opens on, and which other parts the new records open: counts, from features that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tempertilt.data.batches import example_key
from tempertilt.data.examples import Example
from tempertilt.fitting.features import Features, FeatureStore
from tempertilt.fitting.result import UnlearnResult
from tempertilt.guidance.gate import Gates
from tempertilt.models.adapter import load_adapter


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


def stored_features(examples: Sequence[Example], directory: Path) -> Features:
    """The features of examples that have just been stored in a directory: checksums are not computed again."""
    store = FeatureStore(directory, verify=False)
    store.refresh()
    return features_of(examples, store)


def measure_interference(others: Mapping[str, Path], forget: Features, result: UnlearnResult, retained: int) -> Interference:
    """Measured on features that are there: the model does not run.

    Args:
        others: the parts that act, by request.
        forget: of the new records.
        result: of their fit.
        retained: number of retain and background texts, which are the first that the fit's gates were measured on.
    """
    parts = {}
    for name, directory in others.items():
        gates = load_adapter(directory).gates
        if gates is not None and (count := opened_texts(gates, forget)):
            parts[name] = count
    return Interference(_retained(result, retained), parts)


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
