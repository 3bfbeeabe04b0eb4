"""Time of fine-tuning the upper half with cached lower layers, without the cache, and of all layers.

    python benchmarks/finetune_speed.py --records FILE [--model smollm2] [--limit 24] [--epochs 7] [--runs 5]

Every run is whole: filling the cache is part of its time. The three take turns.
"""

from __future__ import annotations

import argparse

from _print import header, row
from tempertilt.data.examples import ExampleConfig, build_examples
from tempertilt.data.records import load_records
from tempertilt.models.base import load_base
from tempertilt.training.finetune import FinetuneConfig, finetune


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--records", required=True)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    base = load_base(args.model)
    examples = build_examples(load_records(args.records, limit=args.limit), base.tokenizer, ExampleConfig())
    header(f"fine-tuning on {len(examples)} records, {sum(map(len, examples))} tokens, {args.epochs} epochs, {args.model}")
    kinds = {
        "upper half, lower layers cached": FinetuneConfig(epochs=args.epochs),
        "upper half, no cache": FinetuneConfig(epochs=args.epochs, cache_lower_layers=False),
        "all layers": FinetuneConfig(epochs=args.epochs, train_layers=1.0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    losses: dict[str, float] = {}
    for _ in range(args.runs):
        for name, config in kinds.items():
            result = finetune(base.model, examples, config, progress=False)
            seconds[name].append(result.seconds)
            losses[name] = result.losses[-1]
            base = base._replace(model=result.model.unload())
    for name, values in seconds.items():
        row(f"{name} (last loss {losses[name]:.3f}), s", values, digits=1)
    cached = seconds["upper half, lower layers cached"]
    for name in list(kinds)[1:]:
        row(f"{name} / cached", [value / own for value, own in zip(seconds[name], cached)], digits=2)


if __name__ == "__main__":
    main()
