"""Many parts in one model: time of a token over the base's, memory, bytes on disk, time to take up a change.

python benchmarks/composition_scale.py [--model smollm2] [--parts 1 10 100 1000] [--pairs 9] [--tokens 32] [--clock wall|cpu]

Exemplars are random. There are as many as ten records can give, unless told otherwise: two for each of 100 prompts and answers,
24 for each of ten answers. A head has 300 tokens. All parts share their readers, as those of a ledger do. Answers are greedy, of
a fixed length; base and composition take turns. In "closed" no gate opens, in "one open" one part tilts every token.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from _print import header, row, save
from generation_overhead import QUESTIONS
from tempertilt.guidance.gate import EvidenceGate, Gates, Reader, TurnStarts
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.adapter import AdapterConfig, save_adapter
from tempertilt.models.base import decoder_layers, load_base
from tempertilt.models.composed import ComposedLM
from tempertilt.models.generation import pad_left

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SIZES = (96, 64)  # numbers of an exemplar of the input gate, and of the output gate
RANK, TOKENS_WITH_A_ROW = 96, 300


def random_gate(size: tuple[int, int], reader: Reader, generator: torch.Generator, threshold: float) -> EvidenceGate:
    exemplars = F.normalize(torch.randn(*size, generator=generator), dim=-1)
    return EvidenceGate(reader, exemplars, torch.full((size[0],), 0.4), threshold=threshold, weak_threshold=threshold)


def make_parts(base: Any, count: int, exemplars: Sequence[int]) -> tuple[dict[str, Guidance], Guidance]:
    """Parts whose gates are closed, and one whose gates are open, with so many exemplars of each gate."""
    generator = torch.Generator().manual_seed(0)
    hidden, layers = base.get_input_embeddings().embedding_dim, len(decoder_layers(base))
    readers = [Reader(torch.zeros(hidden), torch.randn(size, hidden, generator=generator)) for size in SIZES]
    turns = TurnStarts([1], F.normalize(torch.randn(4, SIZES[0], generator=generator), dim=-1), 0.5)

    def part(threshold: float) -> Guidance:
        shapes = zip(exemplars, SIZES)
        gates = (random_gate(shape, reader, generator, threshold) for shape, reader in zip(shapes, readers))
        tokens = torch.randperm(base.config.vocab_size, generator=generator)[:TOKENS_WITH_A_ROW]
        head = GuidanceHead(hidden, RANK, tokens, bias=True)
        return Guidance(head, Gates(max(1, round(0.3 * layers)), *gates, turns, 256), TiltConfig(1.0, 1.0, 0.9), "last")

    return {f"request-{i}": part(0.9) for i in range(count)}, part(-9.0)


def timed(model: Any, ids: torch.Tensor, mask: torch.Tensor, tokens: int, clock: Callable[[], float]) -> float:
    """Milliseconds a step."""
    started = clock()
    with torch.inference_mode():
        options = {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens, "pad_token_id": 0}
        model.generate(ids, attention_mask=mask, **options)
    return 1000 * (clock() - started) / tokens


def compare(
    base: Any, model: ComposedLM, ids: torch.Tensor, mask: torch.Tensor, pairs: int, tokens: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds a step of both, in turns, and the ratio of each pair."""
    for each in (base, model):
        timed(each, ids, mask, 4, clock)
    times: dict[str, list[float]] = {"base": [], "composed": []}
    for i in range(pairs):
        for name in ("base", "composed") if i % 2 else ("composed", "base"):
            times[name].append(timed(base if name == "base" else model, ids, mask, tokens, clock))
    return times | {"ratio": [composed / plain for composed, plain in zip(times["composed"], times["base"])]}


def tensor_bytes(model: ComposedLM) -> int:
    """Bytes of the parts' tensors, each counted once."""
    tensors = [*model.guidance.parameters(), *model.guidance.buffers()]
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def adapter_bytes(part: Guidance, base: Any) -> int:
    """Bytes on disk of a part as an adapter."""
    hidden, vocabulary = part.head.hidden_size, base.config.vocab_size
    settings = {"pooling": part.pooling, "gate": part.gates.settings if part.gates else None}
    with tempfile.TemporaryDirectory() as folder:
        config = AdapterConfig("model", "0", "llama", hidden, vocabulary, **settings)
        save_adapter(Path(folder), part.head, config, part.gates)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--exemplars", type=int, nargs=2, default=[200, 240], help="of the input gate, and of the output gate")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu is the process's own time, for a shared machine")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    loaded, clock = load_base(args.model), CLOCKS[args.clock]
    base, tokenizer = loaded.model, loaded.tokenizer
    header(f"parts of ten records in one model, {args.model}; {args.tokens} tokens an answer; {args.clock} time")
    every, opened = make_parts(base, max(args.parts), args.exemplars)
    results: dict[str, Any] = {"adapter_bytes": adapter_bytes(opened, base), "parts": {}}
    print(f"adapter: {results['adapter_bytes']:,} bytes each")
    for count in args.parts:
        names = list(every)[:count]
        started = clock()
        closed = ComposedLM(base, {name: every[name] for name in names})
        first = clock() - started
        started = clock()
        model = ComposedLM(base, {name: every[name] for name in names[1:]} | {"open": opened})
        again = clock() - started
        facts: dict[str, Any] = {"bytes": tensor_bytes(closed), "cache_bytes_a_position": 4 * (1 + 5 * count)}
        facts |= {"seconds_to_compose": first, "seconds_to_add_one_and_drop_one": again}
        print(f"\n{count} parts: {facts['bytes'] / 2**20:.1f} MiB, {facts['cache_bytes_a_position']:,} bytes of cache a position")
        print(f"composed in {first:.3f} s; one added and one dropped in {again:.3f} s")
        for batch in args.batches:
            chats = [[{"role": "user", "content": question}] for question in QUESTIONS[:batch]]
            prompts = [
                tokenizer(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)).input_ids
                for chat in chats
            ]
            ids, mask = pad_left(prompts, tokenizer.pad_token_id, base.device)
            for name, composed in (("closed", closed), ("one open", model)):
                times = compare(base, composed, ids, mask, args.pairs, args.tokens, clock)
                facts[f"{name}, batch {batch}"] = times
                row(f"{count} parts, batch {batch}, {name}: base, ms", times["base"], digits=2)
                row(f"{count} parts, batch {batch}, {name}: composed, ms", times["composed"], digits=2)
                row(f"{count} parts, batch {batch}, {name}: ratio", times["ratio"])
                facts[f"{name}, batch {batch}, median ratio"] = statistics.median(times["ratio"])
        results["parts"][str(count)] = facts
    print(f"\npeak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if args.out:
        save(args.out, results)


if __name__ == "__main__":
    main()
