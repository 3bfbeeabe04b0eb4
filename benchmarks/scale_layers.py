"""Head and both gates against one layer of a large model, random weights: bytes, arithmetic, memory and time of a token.

    python benchmarks/scale_layers.py [--models Llama-3.1-8B Llama-3.1-70B] [--dtypes bfloat16 float32] [--batches 1 64]
        [--requests 1 10 100 1000] [--repeats 7] [--save FILE]

Measured here, for each model and type: one decoder layer and the output layer, in steps of B tokens that are each a sequence
(decoding), without what attention reads of earlier positions; then the gates of N requests, which are parts of one composition
and closed, with what is remembered of their events; and one head with the tilt. The time of a step is the processor's in one
thread, which other processes on the machine change little. A token of the whole model is layers x layer + output layer. The size
of a file, operations counted by torch, and bytes that are remembered are compared with the formulas of `_shapes.py`.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import _shapes
from _print import header, row, save
from _shapes import MODELS, TINY, Layer, Request, Shape, random_part, random_parts
from tempertilt.guidance.composition import Composition
from tempertilt.guidance.pooling import continue_rows, memory_rows, read_memory

REQUEST = Request()
SHAPES = MODELS | {"tiny": TINY}


@torch.inference_mode()
def seconds(function: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of the processor, one thread; the first run is left out."""
    out = []
    for _ in range(repeats + 1):
        started = time.thread_time()
        function()
        out.append(time.thread_time() - started)
    return out[1:]


def sizes(shape: Shape) -> dict[str, int]:
    """Bytes of an adapter's tensors, and operations of its gates for a token, as measured; each must be what the formula says."""
    guidance, state = random_part(shape, REQUEST), torch.randn(1, shape.width)
    assert guidance.gates is not None
    with tempfile.TemporaryDirectory() as directory, FlopCounterMode(display=False) as counter:
        guidance.gates.evidence(state, state, torch.tensor([1]))
        save_file(guidance.head.tensors() | guidance.gates.tensors(), Path(directory) / "adapter.safetensors")
        stored = (Path(directory) / "adapter.safetensors").stat().st_size
    expected = sum(_shapes.part_bytes(shape, REQUEST))
    assert abs(stored - expected) < 4096, (stored, expected)  # the header of the file
    assert counter.get_total_flops() == _shapes.gate_flops(shape, REQUEST)
    return {"adapter_bytes": stored, "gate_flops": counter.get_total_flops()}


def remembered(parts: Composition) -> int:
    """Bytes that are remembered of a token, as measured; must be what the formula says."""
    events = torch.zeros(1, 1, 5 * len(parts.parts), dtype=torch.bool)
    size = int(memory_rows(torch.zeros(1, 1, 0), None, events).nbytes)
    assert size == _shapes.memory_bytes(len(parts.parts))
    return size


def measure_base(shape: Shape, dtype: torch.dtype, batch: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of a layer and of the output layer, for a step of so many tokens."""
    states = torch.randn(batch, 1, shape.width, dtype=dtype)
    out = {"layer": measure_layer(shape, states, repeats)}
    gc.collect()
    output = torch.empty(shape.vocabulary, shape.width, dtype=dtype).uniform_(-0.02, 0.02)
    return out | {"output_layer": seconds(lambda: torch.nn.functional.linear(states[:, 0], output), repeats)}


def measure_layer(shape: Shape, states: torch.Tensor, repeats: int) -> list[float]:
    layer = Layer(shape, states.dtype)
    return seconds(lambda: layer(states), repeats)


def measure_guidance(parts: Composition, shape: Shape, dtype: torch.dtype, batch: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of the gates with what they remember, and of one head with the tilt, for a step of so many tokens."""
    states, ids = torch.randn(batch, 1, shape.width, dtype=dtype), torch.zeros(batch, 1, dtype=torch.long)
    logits, gate = torch.randn(batch, 1, shape.vocabulary, dtype=dtype), torch.zeros(batch, 1, len(parts.parts))
    before = memory_rows(torch.zeros(batch, 1, 0), None, torch.zeros(batch, 1, 5 * len(parts.parts), dtype=torch.bool))
    gate[..., 0] = 1.0
    return {
        "gates": seconds(lambda: remember(parts, states, ids, before), repeats),
        "head": seconds(lambda: parts.guide(logits, states, None, gate), repeats),
    }


def remember(parts: Composition, states: torch.Tensor, ids: torch.Tensor, before: torch.Tensor) -> torch.Tensor | None:
    """The gates' values at one more token of each sequence."""
    new = parts.observe(states, states, ids)
    return parts.read(read_memory(continue_rows(memory_rows(new.projected, None, new.events), before, 0), 0)).gate


def table(name: str, shape: Shape, dtype: str, runs: dict[str, Any], batch: int) -> None:
    """What the medians give for the whole model."""
    base = runs["base"]
    median = {part: statistics.median(values) for part, values in base.items()}
    step = shape.layers * median["layer"] + median["output_layer"]
    print(f"\n{name}, {dtype}, {batch} tokens a step: {1e3 * step:.1f} ms = {shape.layers} x {1e3 * median['layer']:.2f} ms "
          f"+ {1e3 * median['output_layer']:.2f} ms")  # fmt: skip
    print("| requests | gates, ms | head, ms | gates, of a layer | gates and head, of a step |\n|---|---|---|---|---|")
    for requests, parts in runs["guidance"].items():
        gates, head = statistics.median(parts["gates"]), statistics.median(parts["head"])
        share = gates / median["layer"], (gates + head) / step
        print(f"| {requests:,} | {1e3 * gates:.3f} | {1e3 * head:.3f} | {share[0]:.2%} | {share[1]:.3%} |", flush=True)


def size_table(name: str, shape: Shape, compositions: dict[int, Composition]) -> dict[str, Any]:
    """Print and return what is counted, not timed; bytes and operations of N parts are the formulas, checked for one part."""
    shared, part = _shapes.part_bytes(shape, REQUEST)
    print(f"\n{name}: readers {shared:,} bytes, a request {part:,} bytes; keys and values of a token {shape.kv_bytes():,} bytes")
    print("| requests | parts, MB | gates, MFLOP a token | of the model's | remembered, bytes a token | of keys and values |")
    print("|---|---|---|---|---|---|")
    model = 2 * (shape.body + shape.vocabulary * shape.width)
    memory = {}
    for count, parts in compositions.items():
        flops, memory[count] = _shapes.gate_flops(shape, REQUEST, count), remembered(parts)
        print(f"| {count:,} | {(shared + count * part) / 1e6:,.1f} | {flops / 1e6:,.1f} | {flops / model:.3%} "
              f"| {memory[count]:,} | {memory[count] / shape.kv_bytes():.2%} |")  # fmt: skip
    return sizes(shape) | {"memory_bytes": memory}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 10, 100, 1000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    header(f"head and both gates against a layer, random weights; a request is {REQUEST}")
    results: dict[str, Any] = {}
    for name in args.models:
        shape = SHAPES[name]
        compositions = {count: Composition(random_parts(shape, REQUEST, count)) for count in args.requests}
        results[name] = {"sizes": size_table(name, shape, compositions)}
        for dtype in args.dtypes:
            for batch in args.batches:
                options = (shape, getattr(torch, dtype), batch)
                base = measure_base(*options, args.repeats)
                for part, values in base.items():
                    row(f"{name} {dtype} {batch}: {part}, ms", [1e3 * value for value in values])
                guided = {count: measure_guidance(parts, *options, args.repeats) for count, parts in compositions.items()}
                results[name][f"{dtype}, {batch}"] = runs = {"base": base, "guidance": guided}
                table(name, shape, dtype, runs, batch)
                if args.save:
                    save(args.save, results)


if __name__ == "__main__":
    main()
