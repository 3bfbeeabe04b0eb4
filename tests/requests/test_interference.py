"""Counts of what a new part opens on, against the model's own gate values."""

from __future__ import annotations

from typing import Any

import torch

from _ledgers import CONFIG, PERSONS, RETAINED, Place, records
from tempertilt.data.examples import build_examples
from tempertilt.fitting.features import FeatureStore, extract_features
from tempertilt.models.adapter import load_adapter
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.requests.interference import opened_texts


def opens(model: Any, example: Any) -> bool:
    """Whether the gates of a whole model are open anywhere in a text."""
    ids = torch.from_numpy(example.input_ids).long()[None]
    _, _, gate = model.tilt_terms(ids, torch.ones_like(ids), torch.ones_like(ids).bool())
    return bool((gate > 0).any())


def test_texts_that_open_a_part_are_those_that_open_its_model(made: Place, tmp_path: Any) -> None:
    part = load_adapter(made.ledger.part("REQ-0"))
    layer = part.gates.layer if part.gates is not None else 0
    texts = [record for person in (*PERSONS, *RETAINED) for record in records(person)]
    examples = build_examples(texts, made.base.tokenizer, CONFIG.examples)
    store = FeatureStore(tmp_path / "features")
    features, _ = extract_features(made.base.model, examples, store, CONFIG.features, state_layer=layer, progress=False)
    assert part.gates is not None
    part.gates.asked.threshold = part.gates.asked.weak_threshold = 0.3  # so that some of the others open it, too
    model = T3ForCausalLM(made.base.model, part.head, part.config, part.gates)
    expected = [opens(model, example) for example in examples]
    assert 3 < sum(expected) < len(expected)
    assert [opened_texts(part.gates, features.subset([i])) == 1 for i in range(len(examples))] == expected
    assert opened_texts(part.gates, features) == sum(expected)


def test_the_event_has_the_counts(place: Place) -> None:
    added = place.add("REQ-9", PERSONS[0])
    assert added.interference.retained is not None
    opened, texts = added.interference.retained
    background = added.result.model.adapter_config.training["background_records"]
    assert texts == 15 + background and 0 <= opened <= texts
    assert added.event.payload["interference"] == {"retained": (opened, texts), "parts": added.interference.parts}
    replaced = place.add("REQ-10", PERSONS[0], replace="REQ-9").interference
    assert "REQ-9" not in replaced.parts and replaced.parts["REQ-0"] == 3
