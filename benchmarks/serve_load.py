"""Load on `t3 serve`: many clients at once, each checked against the greedy answer computed alone; disconnects; memory; shutdown.

python benchmarks/serve_load.py [--clients 64] [--seconds 180]

A tiny random model with four adapters on loopback; twice as many answers may wait as there are clients. Ends with status 1 if a
client met an error or an answer not its own, if memory grew, if the place of a client that disconnected stayed taken, or if the
shutdown cut a stream.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from _print import header, row
from _tiny import NAMES, greedy_texts, served, write_model

KEY = "load-test-key"
LAST = 300  # tokens of the answers that are under way at shutdown
GROWTH = 0.03  # of the resident memory from the second third to the last


@dataclass
class Seen:
    """What the clients met."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    disconnects: int = 0
    mistakes: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    cut: int = 0
    finished: int = 0


Case = tuple[str, str, int, str]  # model, prompt, tokens, the greedy answer


def cases(directory: Path, count: int, seed: int = 0) -> list[Case]:
    """Questions with the answers that are expected, and one long one for each model at the end."""
    draw = random.Random(seed)
    words = ["river", "book", "Karachi", "1975", "sea", "house", "painter", "é", "question", "north"]
    asked = [
        (NAMES[i % len(NAMES)], " ".join(draw.choices(words, k=draw.randint(1, 30))), draw.randint(4, 60)) for i in range(count)
    ]
    asked += [(name, f"{name} tells a long story", LAST) for name in NAMES]
    return [(*case, answer) for case, answer in zip(asked, greedy_texts(directory, asked))]


async def ask(client: Any, case: Case, seen: Seen, disconnect: bool = False) -> None:
    """One streamed answer, or the beginning of one."""
    model, prompt, tokens, wanted = case
    started, text = time.perf_counter(), ""
    first = None
    stream = await client.completions.create(model=model, prompt=prompt, max_tokens=tokens, temperature=0, stream=True)
    async for chunk in stream:
        first = first or time.perf_counter() - started
        text += chunk.choices[0].text
        if disconnect:
            await stream.close()
            seen.disconnects += 1
            return
    if text != wanted:
        seen.mistakes.append(f"{model} {prompt!r}: {text!r}, not {wanted!r}")
    seen.first.append(first or 0.0)
    seen.whole.append(time.perf_counter() - started)
    seen.tokens += tokens


async def one_client(number: int, url: str, key: str, table: list[Case], until: float, least: int, seen: Seen) -> None:
    """Asks, one after the other, until time is up, `least` times at least; disconnects now and then."""
    draw, asked = random.Random(number), 0
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120) as client:
        while asked < least or time.monotonic() < until:
            asked += 1
            try:
                await ask(client, draw.choice(table), seen, disconnect=draw.random() < 0.1)
            except openai.OpenAIError as error:
                seen.mistakes.append(f"{type(error).__name__}: {error}")


def metrics(url: str, key: str) -> dict[str, float]:
    """The server's own numbers."""
    request = urllib.request.Request(f"{url}/metrics", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=60) as response:
        lines = [line.rsplit(" ", 1) for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


async def load(
    url: str, key: str, table: list[Case], *, clients: int, seconds: float, stop: Callable[[], Any], least: int = 1
) -> Seen:
    """Run the clients, then stop the server with `stop` while all of them read long answers."""
    seen, until = Seen(), time.monotonic() + seconds
    short, long = table[: -len(NAMES)], table[-len(NAMES) :]

    async def watch() -> None:
        while not seen.memory or time.monotonic() < until:
            seen.memory.append((await asyncio.to_thread(metrics, url, key))["process_resident_memory_bytes"])
            await asyncio.sleep(min(1.0, seconds / 20))

    running: list[Awaitable[None]] = [one_client(i, url, key, short, until, least, seen) for i in range(clients)]
    await asyncio.gather(*running, watch())
    await _idle(url, key, seen)
    await _shutdown(url, key, long, clients, seen, stop)
    return seen


async def _idle(url: str, key: str, seen: Seen) -> None:
    """Every place is free again soon after the last client has left."""
    for _ in range(100):
        now = await asyncio.to_thread(metrics, url, key)
        if now["t3_answers_running"] == now["t3_answers_waiting"] == 0:
            return
        await asyncio.sleep(0.1)
    seen.mistakes.append(f"places are still taken: {now}")


async def _shutdown(url: str, key: str, table: list[Case], clients: int, seen: Seen, stop: Callable[[], Any]) -> None:
    began = 0

    async def last(i: int) -> None:
        nonlocal began
        model, prompt, tokens, wanted = table[i % len(table)]
        text, reason = "", None
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=300) as client:
            stream = await client.completions.create(model=model, prompt=prompt, max_tokens=tokens, temperature=0, stream=True)
            began += 1
            async for chunk in stream:
                text, reason = text + chunk.choices[0].text, chunk.choices[0].finish_reason or reason
        seen.finished += text == wanted and reason is not None
        seen.cut += not (text == wanted and reason is not None)

    async def stop_it() -> None:
        while began < clients:
            await asyncio.sleep(0.01)
        stop()

    found = await asyncio.gather(*(last(i) for i in range(clients)), stop_it(), return_exceptions=True)
    seen.mistakes += [f"at shutdown, {type(error).__name__}: {error}" for error in found if isinstance(error, Exception)]


def growth(memory: list[float]) -> float:
    """Of the median of the last third over that of the second."""
    third = len(memory) // 3
    return statistics.median(memory[-third:]) / statistics.median(memory[third : 2 * third]) - 1 if third else 0.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180)
    args = parser.parse_args()
    header(f"load on t3 serve: {args.clients} clients, {args.seconds:g} s, tiny model, transformers backend")
    with tempfile.TemporaryDirectory() as work:
        adapters = write_model(Path(work))
        table = cases(Path(work), 200)
        with served(adapters, KEY, "--shutdown-timeout", "600", "--max-waiting", str(2 * args.clients)) as (process, url):
            found = load(
                url,
                KEY,
                table,
                clients=args.clients,
                seconds=args.seconds,
                stop=lambda: process.send_signal(signal.SIGTERM),
            )
            seen = asyncio.run(found)
            status = process.wait(timeout=600)
    row("time to first token", seen.first, " s")
    row("time to last token", seen.whole, " s")
    row("resident memory of the server", [bytes_ / 2**20 for bytes_ in seen.memory], " MiB", 1)
    grown = growth(seen.memory)
    print(f"answers {len(seen.whole)}, at most {seen.tokens / args.seconds:.0f} tokens/s, disconnects {seen.disconnects}")
    print(f"memory, last third over second: {grown:+.2%}")
    print(f"shutdown under load: {seen.finished} of {args.clients} streams finished with their own text, exit status {status}")
    for mistake in seen.mistakes[:20]:
        print(f"MISTAKE {mistake}")
    good = not seen.mistakes and not seen.cut and seen.finished == args.clients and status == 0 and grown < GROWTH
    print("passed" if good else f"FAILED ({len(seen.mistakes)} mistakes)")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
