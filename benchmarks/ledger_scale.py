"""How long a ledger takes with many requests: to say which parts act, to revoke, to verify.

python ledger_scale.py --requests 1 10 100 1000

The parts are copies of one that a tiny model was given: their number counts here, not what is in them. `--part-kib` pads each to
the size of a real one. Revoking is also timed as a command, the start of Python in it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from _ledgers import OFFICER, PERSONS, new_ledger
from _print import header, row
from _tiny import write_model
from tempertilt.models.base import load_base
from tempertilt.requests import Ledger
from tempertilt.storage import file_sha256

REPEATS = 5


def timed(action: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def fill(ledger: Ledger, part: Path, payload: dict[str, Any], requests: int) -> list[float]:
    """Add requests until there are so many; seconds of each."""
    seconds = []
    for number in range(len(ledger.requests()), requests):
        work = ledger.directory / "copy"
        shutil.copytree(part, work)
        add = partial(ledger.write, "add", f"REQ-{number}", lambda _: payload, OFFICER, moves=work)
        seconds.append(timed(add))
    return seconds


def revoke_by_command(ledger: Ledger, name: str) -> None:
    """`t3 requests revoke` in a process of its own."""
    words = ["requests", "revoke", name, "--ledger", str(ledger.directory), "--why", "x", "--by", "officer", "-q"]
    script = "import sys; from tempertilt.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", script, *words], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Fill, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--part-kib", type=int, default=400)
    args = parser.parse_args()
    header(f"a ledger of many requests, parts of {args.part_kib} KiB")
    with tempfile.TemporaryDirectory() as work:
        write_model(Path(work))
        place = new_ledger(Path(work), load_base(str(Path(work) / "model")))
        payload = place.add("REQ-first", PERSONS[0]).event.payload
        ledger, part = place.ledger, Path(work) / "part"
        shutil.copytree(ledger.part("REQ-first"), part)
        (part / "padding.bin").write_bytes(os.urandom(args.part_kib * 1024))
        payload = {**payload, "files": {path.name: file_sha256(path) for path in sorted(part.iterdir())}}
        ledger.revoke("REQ-first", OFFICER, why="its part is not padded")
        for requests in args.requests:
            adding = fill(ledger, part, payload, requests + 2 * REPEATS)
            print(f"\n{requests} requests")
            row("writing the event of a new request", adding, " s", 4)
            row("active parts", [timed(ledger.active) for _ in range(REPEATS)], " s", 4)
            row("verify", [timed(ledger.verify)], " s")
            names = [state.id for state in ledger.requests() if state.has_files][-2 * REPEATS :]
            some = [timed(partial(ledger.revoke, name, OFFICER, why="x")) for name in names[:REPEATS]]
            row("revoke", some, " s", 4)
            row("t3 requests revoke", [timed(partial(revoke_by_command, ledger, name)) for name in names[REPEATS:]], " s")


if __name__ == "__main__":
    main()
