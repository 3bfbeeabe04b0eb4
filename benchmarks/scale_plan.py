"""What unlearning costs at scale: a measured cost for each token here, and the arithmetic from it to large models and clusters.

    python benchmarks/scale_plan.py [--model smollm2] [--tokens 1e9] [--scored 0.35] [--batches 5] [--save FILE]

Measured on this machine: the processor's time of extraction for each token over its arithmetic (multiplications and additions of
the body's weight matrices and of attention), as a share of what a plain matrix product reaches in the same type, both in one
thread; the speed of writing and of verifying shards; the main memory that an example takes. Everything else is arithmetic from
the shapes of the models and from the assumptions that are printed with it. For decoding see scale_layers.py.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _print import header, row, save
from _shapes import MODELS, Shape
from tempertilt.data.batches import plan_batches
from tempertilt.data.examples import Example
from tempertilt.fitting.features import FeatureConfig, FeatureStore, extract_features
from tempertilt.fitting.fit_gate import GateConfig
from tempertilt.fitting.store import write_shard
from tempertilt.fitting.workers import batch_features
from tempertilt.models.base import load_base

MIB, GIB, TIB, HOUR = 2**20, 2**30, 2**40, 3600.0
LENGTH = 200  # tokens of a record, prompt included
FORGET_RECORDS = 4000
EPOCHS = 100


# dense bfloat16 tensor-core peak and memory, from NVIDIA's data sheets
GPUS = {"A100 80GB SXM": (312e12, 80e9), "H100 80GB SXM": (989e12, 80e9), "H200 SXM": (989e12, 141e9)}
UTILISATION = 0.4  # assumed share of a GPU's peak
GATHER = 300e9  # assumed bytes a second at which a process receives layers from the others of its machine


def shape_of(model: Any) -> Shape:
    config = model.config.get_text_config()
    head = config.hidden_size // config.num_attention_heads
    return Shape(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_key_value_heads * head,
        config.vocab_size,
        config.num_attention_heads,
    )


def random_examples(n: int, length: int, vocabulary: int, scored: float) -> list[Example]:
    rng = np.random.default_rng(0)
    mask = np.arange(length) >= round(length * (1 - scored))
    return [Example(rng.integers(0, vocabulary, length).astype(np.int32), mask, f"d{i}", f"f:{i}", i) for i in range(n)]


def matrix_speed(repeats: int = 5) -> list[float]:
    """Operations a second of a matrix product, float32."""
    a, out = torch.randn(2048, 2048), []
    a @ a
    for _ in range(repeats):
        started = time.thread_time()
        a @ a
        out.append(2 * 2048**3 / (time.thread_time() - started))
    return out


def measure_extraction(name: str, batches: int, scored: float) -> tuple[Shape, list[float]]:
    """Processor's seconds for each token in each of some full batches, the lower states that the input gate reads included."""
    base = load_base(name, device="cpu", dtype="float32")
    shape, config = shape_of(base.model), FeatureConfig(pooling="last")
    examples = random_examples((batches + 1) * config.batch_tokens // LENGTH, LENGTH, shape.vocabulary, scored)
    layer, seconds = GateConfig().layer(shape.layers), []
    for batch in plan_batches(examples, config.batch_tokens)[: batches + 1]:
        started = time.thread_time()
        batch_features(base.model, [examples[i] for i in batch], config, layer)
        seconds.append((time.thread_time() - started) / (len(batch) * LENGTH))
    return shape, seconds[1:]


def measure_store(mib: int = 256) -> tuple[float, float]:
    """Bytes a second of writing a shard and of opening a store that checks it."""
    with tempfile.TemporaryDirectory() as directory:
        rows = mib * MIB // (1024 * 2)
        features, targets = torch.zeros(rows, 1024, dtype=torch.float16), torch.zeros(rows, dtype=torch.int32)
        started = time.perf_counter()
        write_shard(Path(directory), "a", ["a"], [rows], features, targets)
        written = time.perf_counter()
        FeatureStore(Path(directory))
        return mib * MIB / (written - started), mib * MIB / (time.perf_counter() - written)


def measure_memory(n: int = 20000) -> float:
    """Bytes of main memory of an example and of its entry in the store."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 100}
    model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    with tempfile.TemporaryDirectory() as directory:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        examples = random_examples(n, LENGTH, 100, 0.35)
        features, _ = extract_features(model, examples, FeatureStore(Path(directory)), FeatureConfig(), progress=False)
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert len(features) == n
    return held / n


def feature_bytes(shape: Shape, tokens: float, scored: float, item: int, gate: bool) -> float:
    """Bytes of a store: features and target ids of scored tokens, lower states of all tokens in float16."""
    return tokens * (scored * (shape.width * item + 4) + (2 * shape.width if gate else 0))


def weights_per_gpu(shape: Shape, gpus: int) -> float:
    """Bytes of bfloat16 weights on each of N GPUs: layers split, one whole; both ends on every one."""
    ends = 2 * 2 * shape.vocabulary * shape.width
    return 2 * shape.body / gpus + ends + (2 * shape.body / shape.layers if gpus > 1 else 0)


def activations(shape: Shape, batch_tokens: int) -> float:
    """Bytes at the widest point of a pass: inner states three times in bfloat16, states six times, pooled twice in float32."""
    return batch_tokens * (3 * 2 * shape.inner + 6 * 2 * shape.width + 2 * 4 * shape.width)


def plan(name: str, shape: Shape, args: argparse.Namespace, written: float, verified: float) -> dict[str, Any]:
    tokens = args.tokens
    print(f"\n## {name}, {tokens:.3g} retain tokens in records of {LENGTH}, {args.scored:.0%} of them scored")
    print(f"parameters {shape.parameters / 1e9:.2f} B, of which the body's matrices {shape.body / 1e9:.2f} B")
    out: dict[str, Any] = {"parameters": shape.parameters, "flops_per_token": shape.flops(LENGTH)}
    print(f"arithmetic of a token: {shape.flops(LENGTH) / 1e9:.1f} GFLOP; of all: {shape.flops(LENGTH) * tokens:.3g} FLOP")
    print("\n| GPUs | hours | weights on each, GB | pass of 16,384 tokens, GB |\n|---|---|---|---|")
    out["hours"] = {}
    for gpu, (peak, memory) in GPUS.items():
        for count in (1, 2, 4, 8, 64):
            active, room = activations(shape, 16384), 0.9 * memory
            group = 1 if weights_per_gpu(shape, 1) + active < room else min(count, 8)
            held = weights_per_gpu(shape, group)
            hours = shape.flops(LENGTH) * tokens / (peak * UTILISATION * count) / HOUR
            if held + active < room and count in (group, 8, 64):
                out["hours"][f"{count} x {gpu}"] = hours
                split = "whole" if group == 1 else f"split over {group}"
                print(f"| {count} x {gpu} | {hours:.1f} | {held / 1e9:.0f}, {split} | {active / 1e9:.1f} |")
    for batch in (2048, 16384):
        run, gathered = batch * shape.flops(LENGTH) / (GPUS["H100 80GB SXM"][0] * UTILISATION), 2 * shape.body * 7 / 8 / GATHER
        print(f"\nsplit over 8 H100, a pass of {batch} tokens on each: {run:.2f} s of arithmetic, {gathered:.2f} s of gathering")
    print("\n| stored | bytes | shards of 1 GiB | written by 8 processes at 1 GB/s | verified by one process as here |")
    print("|---|---|---|---|---|")
    out["bytes"] = {}
    for label, item, gate in (("float32", 4, False), ("float16", 2, False), ("float16 and lower states", 2, True)):
        size = feature_bytes(shape, tokens, args.scored, item, gate)
        out["bytes"][label] = size
        print(
            f"| {label} | {size / TIB:.1f} TiB | {size / GIB:,.0f} | {size / 8e9 / HOUR:.1f} h | {size / verified / HOUR:.1f} h |"
        )
    drawn = min(1.0, EPOCHS * FORGET_RECORDS / (tokens / LENGTH))
    print(f"\nfit of t3-paper: {EPOCHS} epochs draw {EPOCHS * FORGET_RECORDS:,} retain records, {drawn:.1%} of them all")
    out["drawn"] = drawn
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=float, default=1e9)
    parser.add_argument("--scored", type=float, default=0.35, help="share of a record's tokens that are scored")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    header(f"extraction at scale, from {args.model} on this machine")
    speeds = matrix_speed()
    row("matrix product 2048, float32, GFLOP/s", [speed / 1e9 for speed in speeds], digits=0)
    shape, seconds = measure_extraction(args.model, args.batches, args.scored)
    row("extraction, ms a token", [1e3 * value for value in seconds])
    flops, median, speed = shape.flops(LENGTH), statistics.median(seconds), statistics.median(speeds)
    share = flops / median / speed
    print(f"{flops / 1e9:.3f} GFLOP a token: {flops / median / 1e9:.0f} GFLOP/s, {share:.0%} of the matrix product")
    written, verified = measure_store()
    print(f"one shard written at {written / 1e9:.2f} GB/s (with fsync), verified at {verified / 1e9:.2f} GB/s")
    memory = measure_memory()
    whole = memory * args.tokens / LENGTH / 1e9
    print(f"main memory of the process that plans: {memory:,.0f} bytes an example, {whole:.1f} GB for all")
    print(f"assumed: {UTILISATION:.0%} of a GPU's dense bfloat16 peak; layers gathered at {GATHER / 1e9:.0f} GB/s (NVLink)")
    results: dict[str, Any] = {
        "assumed": {"length": LENGTH, "scored": args.scored, "tokens": args.tokens, "utilisation": UTILISATION},
        "measured": {
            "seconds_per_token": seconds, "matrix_flops": speeds, "share_of_matrix": share, "write": written, "verify": verified,
            "bytes_per_example": memory,
        },
    }  # fmt: skip
    for name, of in MODELS.items():
        hours = of.flops(LENGTH) * args.tokens / (share * speed) / HOUR
        results[name] = plan(name, of, args, written, verified)
        print(f"on this machine's processors, at the measured share: {hours:,.0f} h")
    if args.save:
        save(args.save, results)


if __name__ == "__main__":
    main()
