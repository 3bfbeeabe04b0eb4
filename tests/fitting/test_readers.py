"""Readers from retained text alone: parts that share them are looked at together, and their evidence is as defined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.records import about_persons
from support.tiny import make_llama
from tempertilt.data.examples import Example, ExampleConfig, build_examples
from tempertilt.data.records import Record
from tempertilt.errors import AdapterError
from tempertilt.fitting.features import FeatureConfig, Features, FeatureStore, extract_features
from tempertilt.fitting.fit_gate import GateConfig
from tempertilt.fitting.fit_gates import GateInputs, fit_gates
from tempertilt.fitting.readers import GateReaders, fit_readers, load_readers, save_readers
from tempertilt.guidance.composition import Composition
from tempertilt.guidance.gate import EvidenceGate, Gates
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.head import GuidanceHead

PLAIN, LAYER = ExampleConfig(system_prompt=""), 1
CONFIG = GateConfig(gate=True, false_open=0.3, asked_size=20, said_size=12, whitening_rank=8)
NAMES = {
    "first": ("Hina Ameen", "Taro Okada"),
    "second": ("Lena Fischer",),
    "retain": ("Ivan Petrov", "Maria Lopez", "John Smith"),
}


def records(name: str) -> list[Record]:
    return about_persons(NAMES[name], name)


class Store:
    """Records of a tiny random model, with their examples and features."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self.model, self.tokenizer = make_llama(), tokenizer
        self.examples = {name: build_examples(records(name), tokenizer, PLAIN) for name in NAMES}
        store, config = FeatureStore(folder), FeatureConfig(pooling="last")
        self.features: dict[str, Features] = {
            name: extract_features(self.model, some, store, config, state_layer=LAYER, progress=False)[0]
            for name, some in self.examples.items()
        }

    def gates(self, name: str, readers: GateReaders | None) -> Gates:
        inputs = GateInputs(
            records(name),
            records("retain"),
            self.examples[name],
            self.examples["retain"],
            self.features[name],
            self.features["retain"],
            None,
        )
        return fit_gates(self.model, self.tokenizer, inputs, CONFIG, PLAIN, LAYER, readers=readers).gates


@pytest.fixture(scope="module")
def store(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tokenizer, tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def readers(store: Store) -> GateReaders:
    return fit_readers(store.examples["retain"], store.features["retain"], CONFIG)


def as_part(gates: Gates) -> Guidance:
    return Guidance(GuidanceHead(32, 2, [1]), gates, pooling="last")


def test_parts_with_one_reader_are_looked_at_together(store: Store, readers: GateReaders) -> None:
    shared = Composition({name: as_part(store.gates(name, readers)) for name in ("first", "second")})
    assert len(shared.asked) == len(shared.said) == 1 and len(shared.turns) <= 1
    alone = Composition({name: as_part(store.gates(name, None)) for name in ("first", "second")})
    assert len(alone.asked) == len(alone.said) == 2


def states_of(store: Store, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower states of the tokens behind the common beginning, and last states before the answers' tokens, by whole passes."""
    every = [example.input_ids.tolist() for some in store.examples.values() for example in some]
    common = max(n for n in range(20) if len({tuple(ids[:n]) for ids in every}) == 1)
    rows = []
    for example in examples:
        with torch.no_grad():
            ids = torch.from_numpy(example.input_ids).long()[None]
            hidden = store.model(input_ids=ids, output_hidden_states=True).hidden_states
        rows.append((hidden[LAYER][0, common:], hidden[-1][0, example.scored.nonzero()[0] - 1]))
    lower, last = zip(*rows)
    return torch.cat(lower), torch.cat(last)


def by_definition(gate: EvidenceGate, reader: Any, state: torch.Tensor) -> float:
    x = reader.matrix.double() @ (state.double() - reader.mean.double())
    x = x / x.norm()
    pairs = zip(gate.exemplars.double(), gate.margins.double())
    return max((float(x @ exemplar) - float(margin)) / max(0.1, 1 - float(margin)) for exemplar, margin in pairs)


@pytest.mark.parametrize("name", ["first", "second"])
def test_evidence_with_given_readers_by_a_loop(store: Store, readers: GateReaders, name: str) -> None:
    """Exemplars are states of the forget records, margins their likest retained token, under the given readers."""
    gates = store.gates(name, readers)
    own, retained = (states_of(store, store.examples[key]) for key in (name, "retain"))
    assert gates.said is not None
    for gate, reader, forget, retain in zip((gates.asked, gates.said), readers, own, retained):
        assert torch.equal(gate.mean, reader.mean) and torch.equal(gate.reader, reader.matrix)
        for state in forget[::7]:
            assert float(gate.evidence(state)) == pytest.approx(by_definition(gate, reader, state), abs=1e-4)
        likest = (reader.directions(retain) @ gate.exemplars.T).amax(0)
        assert bool((gate.margins > likest - 0.02).all())  # other retained text, such as variants, may be likest
        assert float(gate.evidence(forget).max()) > 0.9 and float(gate.evidence(retain).max()) < 0.2


def test_readers_are_those_of_the_retained_states(store: Store, readers: GateReaders) -> None:
    """Whitened, the retained states have about the same variance in every direction that is whitened by itself."""
    assert readers.asked.matrix.shape == (20, 32) and readers.said.matrix.shape == (12, 32)
    states, _ = store.features["retain"].gather(range(len(store.examples["retain"])))
    variance = ((states - readers.said.mean) @ readers.said.matrix.T).var(0)
    assert float(variance.max() / variance.min()) < 3 < float(states.var(0).max() / states.var(0).min())


def test_stored_readers(readers: GateReaders, tmp_path: Path) -> None:
    path = tmp_path / "readers.safetensors"
    save_readers(path, readers)
    again = load_readers(path)
    assert all(torch.equal(a, b) for one, other in zip(readers, again) for a, b in zip(one, other))
    assert again.digest == readers.digest != readers._replace(said=readers.asked).digest
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(AdapterError, match="cannot be read"):
        load_readers(path)
