"""Gates whose readers are made from retained text alone, against gates whose readers are made with the forget records.

python benchmarks/experiments/shared_readers.py --peft-adapter DIR --data DIR [--persons 4] [--records 10] [--save FILE]

Of each person, some records are to be forgotten. Both ways are fitted on the same texts. Counted are texts that open the gates:
variants of the forget prompts that the gates were not made of, and text that is to be left alone, with its answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _tofu import Sets, header, load, options, save, states
from torch import Tensor

from tempertilt.data.batches import spread
from tempertilt.data.examples import Example, ExampleConfig
from tempertilt.data.variants import KINDS, draw_variants
from tempertilt.fitting.features import FeatureConfig, FeatureStore, extract_features
from tempertilt.fitting.fit_gate import GateConfig
from tempertilt.fitting.fit_gates import GateInputs, fit_gates, variant_states
from tempertilt.fitting.hearing import SEED
from tempertilt.fitting.readers import fit_readers
from tempertilt.guidance.gate import Gates
from tempertilt.guidance.pooling import scan
from tempertilt.models.base import BaseModel, decoder_layers

OTHERS = ("retain paraphrased", "real authors", "world facts", "chat")
CONFIG, ENCODING = GateConfig(gate=True), ExampleConfig()


def opened(gates: Gates, example: Example, rows: dict[int, Tensor]) -> bool:
    """Whether the gates open anywhere in a text."""
    ids = torch.from_numpy(example.input_ids).long()
    events = gates.events(gates.evidence(rows[-1].float(), rows[gates.layer].float(), ids))[None]
    memory = scan(torch.zeros(1, len(ids), 0), None, events)
    return bool(gates.value(memory.position, memory.latest).any())


@torch.inference_mode()
def heard(base: BaseModel, gates: Gates, records: Sequence[Any]) -> list[float]:
    """The highest evidence of each variant."""
    pairs = variant_states(base.model, base.tokenizer, draw_variants(records, len(KINDS), SEED), ENCODING, gates.layer)
    return [float(gates.asked.evidence(rows).max()) for _, rows in pairs]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--persons", type=int, default=4)
    parser.add_argument("--records", type=int, default=10)
    parser.add_argument("--retain", type=int, default=120)
    args = parser.parse_args()
    base, sets = load(args)
    header(f"gates with shared readers, {args.persons} persons of {args.records} records")
    layer = CONFIG.layer(len(decoder_layers(base.model)))
    retain = spread(sets["retain"], args.retain)
    sets["retain"] = retain
    examples = {name: sets.examples(name, base) for name in ("retain", *OTHERS)}
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder))

        def features(some: Sequence[Example]) -> Any:
            return extract_features(base.model, some, store, FeatureConfig(pooling="last"), state_layer=layer, progress=False)[0]

        kept = features(examples["retain"])
        shared = fit_readers(examples["retain"], kept, CONFIG)
        others = {name: states(base, examples[name], (layer, -1)) for name in OTHERS}
        persons = list(dict.fromkeys(record.document for record in sets["forget"]))[: args.persons]
        counts: dict[str, dict[str, list[int]]] = {"own": {}, "shared": {}}
        for person in persons:
            some = Sets.__new__(Sets)
            some["forget"] = [record for record in sets["forget"] if record.document == person][: args.records]
            forget = some.examples("forget", base)
            inputs = GateInputs(some["forget"], retain, forget, examples["retain"], features(forget), kept, None)
            for name, readers in (("own", None), ("shared", shared)):
                fit = fit_gates(base.model, base.tokenizer, inputs, CONFIG, ENCODING, layer, readers=readers)
                count(counts[name], base, fit.gates, some["forget"], others, examples)
                print(person, name, fit.summary(), flush=True)
    for name, of in counts.items():
        print(f"{name:<8}" + "  ".join(f"{what} {sum(values)}/{len(values)}" for what, values in of.items()))
    if args.save:
        save(args.save, {"counts": {name: {what: [sum(v), len(v)] for what, v in of.items()} for name, of in counts.items()}})


def count(
    counts: dict[str, list[int]],
    base: BaseModel,
    gates: Gates,
    forget: Sequence[Any],
    others: dict[str, list[dict[int, Tensor]]],
    examples: dict[str, list[Example]],
) -> None:
    """Add what opens one person's gates."""
    evidence, weak = heard(base, gates, forget), gates.asked.weak_threshold or 0.0
    counts.setdefault("variants that open", []).extend(int(value > gates.asked.threshold) for value in evidence)
    counts.setdefault("variants that come near", []).extend(int(value > weak) for value in evidence)
    for name, rows in others.items():
        counts.setdefault(name, []).extend(int(opened(gates, one, of)) for one, of in zip(examples[name], rows))


if __name__ == "__main__":
    main()
