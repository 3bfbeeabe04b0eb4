"""Tokens a second of `t3 serve` under 16 and more clients, and, interleaved, of another version of the package.

python benchmarks/serve_throughput.py [--other DIR/src] [--pairs 5] [--hidden 256] [--layers 8]

A random model with four adapters on loopback, a server process for each measurement. The versions take turns, so that a machine
with other work to do slows both; only the ratio counts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import openai

from _print import header, row
from _tiny import NAMES, served, write_model

KEY = "throughput-key"


class Load(NamedTuple):
    """Clients that ask at once, each several times."""

    name: str
    clients: int
    models: int
    requests: int
    tokens: tuple[int, int]  # of an answer, at least and at most
    options: dict[str, Any]


LOADS = (
    Load("16 clients, 64 tokens each, greedy", 16, 1, 3, (64, 64), {"temperature": 0}),
    Load("32 clients, 8 to 96 tokens, sampled", 32, 1, 2, (8, 96), {"temperature": 1.0, "top_p": 0.9}),
    Load("32 clients of two adapters, 8 to 96 tokens, greedy", 32, 2, 2, (8, 96), {"temperature": 0}),
)


async def measure(url: str, load: Load) -> float:
    """Tokens of answers a second."""
    draw = random.Random(0)
    words = ["river", "book", "Karachi", "1975", "sea", "house", "painter"]
    jobs = [
        [(" ".join(draw.choices(words, k=draw.randint(1, 20))), draw.randint(*load.tokens)) for _ in range(load.requests)]
        for _ in range(load.clients)
    ]
    bias = {"2": -100}  # no answer ends early
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=300) as client:

        async def one(number: int, prompts: Sequence[tuple[str, int]]) -> int:
            total = 0
            for prompt, tokens in prompts:
                options = {"model": NAMES[number % load.models], "prompt": prompt, "max_tokens": tokens, "seed": number}
                answer = await client.completions.create(**options, **load.options, logit_bias=bias)
                total += answer.usage.completion_tokens
            return total

        await one(0, jobs[0][:1])
        started = time.perf_counter()
        total = sum(await asyncio.gather(*(one(number, prompts) for number, prompts in enumerate(jobs))))
        return total / (time.perf_counter() - started)


def write_as_other(source: str, directory: Path, hidden: int, layers: int) -> list[str]:
    """The same model and adapters, written by another version, which may not read this one's files."""
    code = f"from pathlib import Path; from _tiny import write_model; write_model(Path({str(directory)!r}), {hidden}, {layers})"
    folder = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env=os.environ | {"PYTHONPATH": source})
    return [f"{name}={directory / name}" for name in NAMES]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--other", help="src folder of another version to compare with")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    header(f"throughput of t3 serve: random model of {args.layers} layers of width {args.hidden}, transformers backend")
    speeds: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as work:
        written = {"this": write_model(Path(work) / "this", args.hidden, args.layers)}
        if args.other:
            written["other"] = write_as_other(args.other, Path(work) / "other", args.hidden, args.layers)
        for pair in range(args.pairs):
            versions = [("this", None), ("other", args.other)]
            for version, source in versions[:: 1 if pair % 2 else -1]:
                if version == "this" or source:
                    with served(written[version], KEY, source=source) as (_, url):
                        for load in LOADS:
                            speeds.setdefault((load.name, version), []).append(asyncio.run(measure(url, load)))
    for load in LOADS:
        print(load.name)
        row("  this version", speeds[load.name, "this"], " tokens/s")
        if args.other:
            row("  the other", speeds[load.name, "other"], " tokens/s")
            ratios = [a / b for a, b in zip(speeds[load.name, "this"], speeds[load.name, "other"])]
            print(f"  ratio of each pair: {', '.join(f'{r:.2f}' for r in ratios)}; median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
