"""Feature extraction: tokens/s over a bare forward pass of the same body and batches; peak memory for 1x and 8x records.

    python benchmarks/extraction.py speed --model smollm2 --records FILE... [--pairs 5] [--limit 100]
    python benchmarks/extraction.py memory [--records 300]

`speed` runs both in turn on the same length-sorted batches; extraction writes its shards to a new directory each time.
`memory` runs a random two-layer model of hidden size 576 over random records, once and eight times as many, each in a
process of its own, with 4 MiB shards, so that the corpus is many shards long.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from _print import header, row
from tempertilt.data.batches import pad_batch, plan_batches
from tempertilt.data.examples import Example, ExampleConfig, build_examples
from tempertilt.data.records import load_records
from tempertilt.fitting.features import FeatureConfig, FeatureStore, extract_features
from tempertilt.models.base import body_of, load_base


def bare(model: object, examples: list[Example], config: FeatureConfig) -> float:
    body, started = body_of(model), time.perf_counter()
    with torch.inference_mode():
        for batch in plan_batches(examples, config.batch_tokens):
            padded = pad_batch([examples[i] for i in batch], model.device)  # type: ignore[attr-defined]
            body(input_ids=padded.input_ids, attention_mask=padded.attention_mask, use_cache=False)
    return time.perf_counter() - started


def extraction(model: object, examples: list[Example], config: FeatureConfig) -> float:
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        extract_features(model, examples, FeatureStore(Path(directory)), config, progress=False)
        return time.perf_counter() - started


def speed(args: argparse.Namespace) -> None:
    base = load_base(args.model)
    records = [record for path in args.records for record in load_records(path)]
    examples = build_examples(records[: args.limit], base.tokenizer, ExampleConfig())
    tokens, config = sum(map(len, examples)), FeatureConfig()
    header(f"extraction of {len(examples)} examples, {tokens} tokens, with {args.model}")
    bare(base.model, examples[:20], config)
    pairs = []
    for i in range(args.pairs):
        runs = {}
        for run in (bare, extraction) if i % 2 else (extraction, bare):
            runs[run] = tokens / run(base.model, examples, config)
        pairs.append((runs[bare], runs[extraction]))
    row("bare forward pass, tokens/s", [pair[0] for pair in pairs], digits=0)
    row("extraction, tokens/s", [pair[1] for pair in pairs], digits=0)
    row("extraction / bare", [pair[1] / pair[0] for pair in pairs])


def one_memory_run(n: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2, "num_attention_heads": 9}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, num_key_value_heads=3, **shape)).eval()
    rng = np.random.default_rng(0)
    scored = np.arange(120) >= 40
    examples = [Example(rng.integers(0, 1000, 120).astype(np.int32), scored, f"{i}", f"{i}", i) for i in range(n)]
    config = FeatureConfig(shard_mib=4)
    with tempfile.TemporaryDirectory() as directory:
        store = FeatureStore(Path(directory))
        extract_features(model, examples[:20], FeatureStore(Path(directory) / "warm-up"), config, progress=False)
        extract_features(model, examples, store, config, progress=False)
        size = sum(path.stat().st_size for path in Path(directory).glob("*.safetensors"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, size / 2**20)


def memory(args: argparse.Namespace) -> None:
    header("peak memory of extraction, MiB")
    peaks = {}
    for n in (args.records, 8 * args.records):
        runs = []
        for _ in range(3):
            out = subprocess.run([sys.executable, __file__, "memory-run", str(n)], capture_output=True, text=True, check=True)
            runs.append([float(value) for value in out.stdout.split()])
        peaks[n] = [run[0] for run in runs]
        row(f"{n} records, {runs[0][1]:.0f} MiB of features", peaks[n], " MiB", 0)
    low, high = (sorted(values)[1] for values in peaks.values())
    print(f"growth from 1x to 8x: {high - low:+.0f} MiB ({high / low - 1:+.1%})")


def main() -> None:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("speed")
    verb.add_argument("--model", default="smollm2")
    verb.add_argument("--records", nargs="+", required=True)
    verb.add_argument("--limit", type=int, default=100)
    verb.add_argument("--pairs", type=int, default=5)
    verb = verbs.add_parser("memory")
    verb.add_argument("--records", type=int, default=300)
    verb = verbs.add_parser("memory-run")
    verb.add_argument("n", type=int)
    args = parser.parse_args()
    {"speed": speed, "memory": memory, "memory-run": lambda args: one_memory_run(args.n)}[args.verb](args)


if __name__ == "__main__":
    main()
