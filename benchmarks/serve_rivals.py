"""`t3 serve` beside `transformers serve` on the same base model: time to the first token, tokens a second.

python benchmarks/serve_rivals.py [--rounds 5] [--model smollm2 | --hidden 256 --layers 8] [--clients 16]

A random model, or a real one with a random head, on loopback; a server process for each measurement. The servers take turns in
each round, so that a machine with other work to do slows all, and only ratios count. `t3 serve` is measured with an adapter
that acts at every token and with the base alone, `transformers serve` as it comes and with `--continuous-batching`. Chats with
a system message, greedy, 64 tokens at most.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import openai
import torch

from _print import header, row
from _tiny import NAMES, served, write_model
from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.base import load_base
from tempertilt.models.t3 import T3ForCausalLM

KEY, TOKENS, REQUESTS, ALONE = "rivals-key", 64, 2, 8
SYSTEM = "You are the assistant of a small company. Answer briefly, politely, and only from what you know."
OURS = {"t3 serve, adapter": NAMES[0], "t3 serve, base": "base"}
RIVALS: dict[str, tuple[str, ...]] = {"transformers serve": (), "transformers serve, continuous": ("--continuous-batching",)}


@contextmanager
def transformers_server(model: Path, *flags: str) -> Iterator[str]:
    """`transformers serve` on a free port; its address."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    code = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = [sys.executable, "-c", code, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(f"transformers serve ended with status {process.returncode}")
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()


def write_real_model(directory: Path, name: str) -> list[str]:
    """A copy of a base model, and an adapter with a random head that acts at every token; the value of `--adapter`."""
    base = load_base(name, device="cpu", dtype="float32")
    base.model.save_pretrained(directory / "model")
    base.tokenizer.save_pretrained(directory / "model")
    vocabulary, hidden = base.model.get_output_embeddings().weight.shape
    head = GuidanceHead(hidden, 16, range(0, vocabulary, 20))
    with torch.no_grad():
        head.A.normal_(std=0.02)
        head.B.normal_(std=0.02)
    model = T3ForCausalLM.from_base(base.model, head, temperature=1.25, guidance_scale=0.5, name=str(directory / "model"))
    model.save_pretrained(directory / NAMES[0])
    return [f"{NAMES[0]}={directory / NAMES[0]}"]


async def measure(url: str, model: str, clients: int) -> dict[str, float]:
    """Seconds to the first token of one client and of many, median; tokens a second of many."""
    draw = random.Random(0)
    words = ["river", "book", "Karachi", "1975", "sea", "house", "painter"]

    def chat() -> list[dict[str, str]]:
        question = " ".join(draw.choices(words, k=draw.randint(5, 20)))
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=300) as client:

        async def first(messages: Sequence[dict[str, str]], tokens: int) -> float:
            started, seconds = time.perf_counter(), 0.0
            options = {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}
            async for chunk in await client.chat.completions.create(**options):  # type: ignore[call-overload]
                if not seconds and chunk.choices and chunk.choices[0].delta.content:
                    seconds = time.perf_counter() - started
            return seconds or time.perf_counter() - started

        async def whole(messages: Sequence[dict[str, str]]) -> int:
            options = {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
            answer = await client.chat.completions.create(**options)  # type: ignore[call-overload]
            return int(answer.usage.completion_tokens)

        await whole(chat())
        alone = [await first(chat(), 4) for _ in range(ALONE)]
        together = await asyncio.gather(*(first(chat(), 16) for _ in range(clients)))
        jobs = [chat() for _ in range(clients * REQUESTS)]
        started = time.perf_counter()
        total = sum(await asyncio.gather(*(whole(job) for job in jobs)))
        speed = total / (time.perf_counter() - started)
    return {"alone": statistics.median(alone), "together": statistics.median(together), "speed": speed}


def main() -> None:
    """Measure in turns; print each server and its ratio to `transformers serve`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", help="a real base model, as of t3; default: a random one")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--clients", type=int, default=16)
    args = parser.parse_args()
    what = args.model or f"random model of {args.layers} layers of width {args.hidden}"
    header(f"servers side by side: {what}, {args.clients} clients")
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as work:
        if args.model:
            adapters = write_real_model(Path(work), args.model)
        else:
            adapters = write_model(Path(work), args.hidden, args.layers)
        for number in range(args.rounds):
            names = [*OURS, *RIVALS]
            for name in names[:: 1 if number % 2 else -1]:
                if name in OURS:
                    with served(adapters[:1], KEY, "--serve-base") as (_, url):
                        found.setdefault(name, []).append(asyncio.run(measure(url, OURS[name], args.clients)))
                else:
                    with transformers_server(Path(work) / "model", *RIVALS[name]) as url:
                        found.setdefault(name, []).append(asyncio.run(measure(url, str(Path(work) / "model"), args.clients)))
    many = f"{args.clients} clients"
    for figure, title, scale in (
        ("alone", "milliseconds to the first token, one client", 1e3),
        ("together", f"milliseconds to the first token, {many} at once", 1e3),
        ("speed", f"tokens a second, {many}", 1),
    ):
        print(title)
        for name in [*OURS, *RIVALS]:
            values = [scale * measured[figure] for measured in found[name]]
            row(f"  {name}", values, "")
            if name in OURS:
                for rival in RIVALS:
                    ratios = [a[figure] / b[figure] for a, b in zip(found[name], found[rival])]
                    print(f"    over {rival}: {', '.join(f'{r:.2f}' for r in ratios)}; median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
