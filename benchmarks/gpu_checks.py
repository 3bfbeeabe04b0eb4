"""What is to be known of a GPU, in one run of minutes; without one, the same in small on the CPU. Prints JSON.

    python benchmarks/gpu_checks.py [--size large|tiny] [--compile] [--seconds 400] > gpu_checks.json

- overhead: a decoding step of a few layers of Llama-3.1-8B's shape in bfloat16 with both gates and the head over one without,
  batches of 1, 8 and 64; kernels one by one, as a CUDA graph, by torch.compile; the share of a step of all layers is worked out
- equality: log-probabilities and answers of a tiny model on the device against those on the CPU, float32
- extraction: tokens a second of features with lower states against a bare pass of the same layers
- fit: seconds of one gate and of the head
- fingerprints: of the same weights on CPU and device, float32 and bfloat16

Needs torch, transformers and safetensors, no weights, no network; the package is taken from ../src. There is no kernel of our own
for the tilt: none was measured, since no GPU was at hand. A check that takes place after `--seconds` is left out and says so.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from _shapes import MODELS, TINY, Layer, Request, Shape, random_part
from extraction import bare
from tempertilt.data.examples import Example
from tempertilt.environment import environment
from tempertilt.fitting.estimate import Targets
from tempertilt.fitting.features import FeatureConfig, FeatureStore, extract_features
from tempertilt.fitting.fit_gate import GateConfig, fit_gate
from tempertilt.fitting.fit_head import FitConfig, match_targets
from tempertilt.fitting.token_states import TokenStates
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.pooling import continue_rows, memory_rows, read_memory
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.fingerprint import fingerprint
from tempertilt.models.t3 import T3ForCausalLM

NO_GPU = "no GPU is at hand: everything below was run in small on the CPU and says nothing of a GPU's speed"


@dataclass(frozen=True)
class Setup:
    """Where and in what size.

    Attributes:
        shape: of the model; `layers` of it are run.
        pairs, steps: measurements, and steps in each.
        texts, length: of extraction and fit.
        contexts, tokens: of the head's fit.
        compile: whether torch.compile is tried.
    """

    device: torch.device
    shape: Shape
    layers: int
    batches: tuple[int, ...]
    pairs: int
    steps: int
    texts: int
    length: int
    contexts: int
    tokens: int
    match_steps: int
    compile: bool


def setups(device: torch.device, compiled: bool) -> dict[str, Setup]:
    large = Setup(device, MODELS["Llama-3.1-8B"], 4, (1, 8, 64), 15, 20, 400, 200, 8000, 1000, FitConfig().match_steps, compiled)
    return {"large": large, "tiny": Setup(device, TINY, 2, (1, 8), 3, 2, 12, 40, 200, 20, 5, compiled)}


# --- time ----------------------------------------------------------------------------------------------------------------


def seconds(function: Callable[[], Any], steps: int, device: torch.device) -> float:
    """Seconds of one step, of `steps` in a row."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(steps):
            function()
        return (time.perf_counter() - started) / steps
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(steps):
        function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / steps


def in_turns(functions: dict[str, Callable[[], Any]], setup: Setup) -> dict[str, dict[str, float]]:
    """Milliseconds of each: median, least and most of `pairs` measurements, in turns."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(setup.pairs + 1):
        for name, function in functions.items():
            found[name].append(1000 * seconds(function, setup.steps, setup.device))
    return {name: spread(values[1:]) for name, values in found.items()}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def graphed(function: Callable[[], Any]) -> Callable[[], Any]:
    """The kernels of a function as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def compiled(function: Callable[[], Any]) -> Callable[[], Any]:
    """A function by torch.compile, on a GPU with CUDA graphs."""
    fast = torch.compile(function, mode="reduce-overhead", fullgraph=True)

    def run() -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return fast()

    for _ in range(3):
        run()
    return run


# --- overhead ------------------------------------------------------------------------------------------------------------


class Decoding(nn.Module):
    """A step of decoding: embedding, some layers, output layer, and what guidance adds; attention sees the new token alone."""

    def __init__(self, setup: Setup, guidance: Guidance, dtype: torch.dtype) -> None:
        super().__init__()
        size, options = (setup.shape.vocabulary, setup.shape.width), {"dtype": dtype, "device": setup.device}
        self.embedding, self.output = (nn.Parameter(0.02 * torch.randn(*size, **options)) for _ in range(2))
        self.layers = nn.ModuleList([Layer(setup.shape, dtype, setup.device) for _ in range(setup.layers)])
        self.guidance = guidance

    def base(self, ids: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `(B, V)`, last states and states after the first layer `(B, 1, d)`, of ids `(B, 1)`."""
        states = lower = F.embedding(ids, self.embedding)
        for number, layer in enumerate(self.layers[:depth]):
            states = layer(states)
            lower = states if number == 0 else lower
        return F.linear(states[:, 0], self.output), states, lower

    def guided(self, ids: Tensor, before: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Guided logits and the row that is remembered, after the row before."""
        logits, last, lower = self.base(ids, depth)
        new = self.guidance.observe(last, lower, ids)
        rows = continue_rows(memory_rows(new.projected, None, new.events), before, self.guidance.rank)
        gate = self.guidance.read(read_memory(rows, self.guidance.rank)).gate
        assert gate is not None
        return self.guidance.guide(logits, last[:, 0], None, gate[:, 0]), rows


@torch.inference_mode()
def overhead(setup: Setup) -> dict[str, Any]:
    """Milliseconds of a step with and without guidance, by batch and way of running."""
    model = Decoding(setup, random_part(setup.shape, Request(), device=setup.device), torch.bfloat16)
    return {
        f"batch {batch}": {way: _overhead(model, setup, batch, make) for way, make in ways(setup).items()}
        for batch in setup.batches
    }


def ways(setup: Setup) -> dict[str, Callable[[Callable[[], Any]], Callable[[], Any]]]:
    """How a step may be run."""
    found: dict[str, Any] = {"kernels one by one": lambda function: function}
    if setup.device.type == "cuda":
        found["CUDA graph"] = graphed
    if setup.compile:
        found["torch.compile"] = compiled
    return found


def _overhead(
    model: Decoding, setup: Setup, batch: int, make: Callable[[Callable[[], Any]], Callable[[], Any]]
) -> dict[str, Any]:
    ids = torch.ones(batch, 1, dtype=torch.long, device=setup.device)
    before = torch.zeros(batch, 1, 6, device=setup.device)
    steps = {
        "one layer": make(lambda: model.base(ids, 1)[0]),
        "base": make(lambda: model.base(ids, setup.layers)[0]),
        "guided": make(lambda: model.guided(ids, before, setup.layers)[0]),
    }
    times = in_turns(steps, setup)
    median = {name: values["median"] for name, values in times.items()}
    layer = (median["base"] - median["one layer"]) / (setup.layers - 1)
    whole = median["base"] + (setup.shape.layers - setup.layers) * layer
    added = median["guided"] - median["base"]
    shares = {"added": added, "a layer": layer, f"base of {setup.shape.layers} layers": whole, "share of it": added / whole}
    return {"milliseconds": times, "worked out, milliseconds": shares}


# --- equality ------------------------------------------------------------------------------------------------------------


def tiny_unlearned() -> T3ForCausalLM:
    """A tiny random model with both gates, which open at some of the tokens below."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(TINY.config()).eval()
    nn.init.normal_(base.lm_head.weight, std=0.5)
    guidance = random_part(TINY, Request())
    assert guidance.gates is not None and guidance.gates.said is not None
    ids = torch.randint(3, TINY.vocabulary, (4, 60))
    with torch.inference_mode():
        states = base(input_ids=ids, output_hidden_states=True).hidden_states
    for gate, layer in ((guidance.gates.asked, guidance.gates.layer), (guidance.gates.said, -1)):
        values = gate.evidence(states[layer]).flatten().sort().values
        gaps = values[len(values) * 9 // 10 : -2].diff()  # the widest gap: no rounding carries a token over it
        place = len(values) * 9 // 10 + int(gaps.argmax())
        gate.threshold = gate.weak_threshold = float(values[place] + values[place + 1]) / 2
    gates = copy.copy(guidance.gates)
    gates.close_after = 8
    return T3ForCausalLM.from_base(
        base, guidance.head, gates=gates, name="tiny", temperature=1.5, forget_prior=0.9, pooling="last"
    )


@torch.inference_mode()
def equality(setup: Setup) -> dict[str, Any]:
    """Greatest differences of log-probabilities (nats), and whether greedy answers are the same."""
    model = tiny_unlearned()
    moved = copy.deepcopy(model).to(setup.device)
    ids = torch.randint(3, TINY.vocabulary, (4, 60), generator=torch.Generator().manual_seed(1))
    there = ids.to(setup.device)
    wanted = model(input_ids=ids).logits.log_softmax(-1)
    whole = moved(input_ids=there).logits.log_softmax(-1)
    cache, parts = None, []
    for piece in there.split(7, dim=1):
        output = moved(input_ids=piece, cache=cache, use_cache=True)
        cache = output.cache
        parts.append(output.logits.log_softmax(-1))
    with model.disable():
        base = model(input_ids=ids).logits.log_softmax(-1)
    options = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": False,
        "max_new_tokens": 30,
        "min_new_tokens": 30,
        "pad_token_id": 0,
    }
    answers = model.generate(ids, **options)
    on_device = moved.generate(there, **options | {"attention_mask": torch.ones_like(there)})
    return {
        "CPU against device": float((wanted - whole.cpu()).abs().max()),
        "cached against whole, on the device": float((torch.cat(parts, 1) - whole).abs().max()),
        "guided against base": float((wanted - base).abs().max()),
        "tokens guided": float(((wanted - base).abs().amax(-1) > 0).float().mean()),
        "greedy answers the same": bool((answers == on_device.cpu()).all()),
    }


# --- extraction, fit, fingerprints -----------------------------------------------------------------------------------------


def random_model(setup: Setup) -> LlamaForCausalLM:
    """A few layers of the shape, random, bfloat16."""
    torch.manual_seed(0)
    with setup.device:
        return LlamaForCausalLM(setup.shape.config(setup.layers)).to(torch.bfloat16).eval()


def extraction(setup: Setup) -> dict[str, Any]:
    """Tokens a second of a bare pass, and of extraction with lower states, its shards written and read back."""
    model, generator = random_model(setup), np.random.default_rng(0)
    scored = np.arange(setup.length) >= setup.length // 2
    examples = [
        Example(generator.integers(3, setup.shape.vocabulary, setup.length).astype(np.int32), scored, f"{i}", f"{i}", i)
        for i in range(setup.texts)
    ]
    config = FeatureConfig(pooling="last", batch_tokens=16384)
    runs: dict[str, list[float]] = {"bare": [], "extraction": []}
    for _ in range(4):
        runs["bare"].append(setup.texts * setup.length / synchronised(lambda: bare(model, examples, config), setup))
        with tempfile.TemporaryDirectory() as directory:
            store = FeatureStore(Path(directory))
            extract = partial(extract_features, model, examples, store, config, state_layer=1, progress=False)
            run = synchronised(extract, setup)
        runs["extraction"].append(setup.texts * setup.length / run)
    found: dict[str, Any] = {f"{name}, tokens/s": spread(values[1:]) for name, values in runs.items()}
    bare_speed, speed = (statistics.median(values[1:]) for values in runs.values())
    whole = setup.shape.layers / setup.layers / bare_speed
    found |= {"layers": setup.layers, "ratio": speed / bare_speed}
    return found | {f"ratio at {setup.shape.layers} layers, worked out": whole / (whole + 1 / speed - 1 / bare_speed)}


def synchronised(function: Callable[[], Any], setup: Setup) -> float:
    """Wall seconds, to the end of what was begun on the device."""
    started = time.perf_counter()
    function()
    if setup.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def fit(setup: Setup) -> dict[str, Any]:
    """Seconds of one gate from random states, and of the head from random targets."""
    generator = torch.Generator(setup.device).manual_seed(0)

    def states() -> TokenStates:
        size = (setup.length // 5, setup.shape.width)
        texts = [torch.randn(*size, generator=generator, device=setup.device) for _ in range(setup.texts)]
        return TokenStates(texts, [f"{i}" for i in range(setup.texts)])

    gate = fit_gate(states(), states(), GateConfig().asked)
    targets = random_targets(setup)
    config = replace(FitConfig(objective="match", rank=96), match_steps=setup.match_steps)
    head = match_targets(targets, None, config, TiltConfig(1.0, 1.0, 0.9), device=setup.device, progress=False)
    return {
        "gate, s": gate.seconds,
        "exemplars": len(gate.gate.margins),
        "head, s": head.seconds,
        "head's steps": setup.match_steps,
    }


def random_targets(setup: Setup) -> Targets:
    """Contexts whose target is a half of what the base says of the head's tokens."""
    generator = torch.Generator().manual_seed(0)
    joint = torch.randn(setup.contexts, setup.tokens + 1, generator=generator).log_softmax(-1)
    base, rest = joint[:, :-1], joint[:, -1]
    target = base - 0.7
    left = (1 - target.exp().sum(-1)).log()
    states = torch.randn(setup.contexts, setup.shape.width, generator=generator)
    rows = torch.randint(setup.tokens, (setup.contexts,), generator=generator)
    return Targets(torch.arange(setup.tokens), states, rows, base, rest, target, left, torch.zeros(setup.contexts), {})


def fingerprints(setup: Setup) -> dict[str, Any]:
    """Names of the same weights on each device, in float32 and bfloat16; all must be equal."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(TINY.config()).to(torch.bfloat16)
    names = {}
    for dtype in (torch.float32, torch.bfloat16):
        for device in (torch.device("cpu"), setup.device):
            names[f"{device.type} {str(dtype).removeprefix('torch.')}"] = fingerprint(copy.deepcopy(model).to(device, dtype))
    return {"names": names, "equal": len(set(names.values())) == 1}


CHECKS = {"fingerprints": fingerprints, "equality": equality, "fit": fit, "extraction": extraction, "overhead": overhead}


def run(setup: Setup, limit: float) -> dict[str, Any]:
    """All checks; one that fails or comes too late says so and takes nothing from the others."""
    started, results = time.perf_counter(), {}
    for name, check in CHECKS.items():
        begun = time.perf_counter()
        if begun - started > limit:
            results[name] = {"left out": f"{begun - started:.0f} s had gone; the limit is {limit:.0f}"}
            continue
        try:
            results[name] = check(setup) | {"seconds": 0.0}
        except Exception:
            results[name] = {"error": traceback.format_exc()}
        results[name]["seconds"] = round(time.perf_counter() - begun, 2)
        print(f"{name}: {results[name]['seconds']} s", file=sys.stderr, flush=True)
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()
    return results


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=("large", "tiny"), help="default: large on a GPU, tiny without one")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="try torch.compile; default: on a GPU")
    parser.add_argument("--seconds", type=float, default=400, help="after which no check is begun")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    size = args.size or ("large" if on_gpu else "tiny")
    setup = setups(device, on_gpu if args.compile is None else args.compile)[size]
    results = run(setup, args.seconds)
    gpu = torch.cuda.get_device_name() if on_gpu else None
    print(
        json.dumps(
            {"gpu": gpu, "note": None if on_gpu else NO_GPU, "size": size, "environment": environment(), **results}, indent=1
        )
    )
    return int(any("error" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
