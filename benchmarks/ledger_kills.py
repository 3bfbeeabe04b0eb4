"""Kill -9 at random points of adding and revoking a request: the event is there whole, or not at all.

python ledger_kills.py --kills 200

Kills come before a line of the code that writes, drawn from all lines that are run or from the last 200 of them, or after a time.
After each the ledger is opened and verified, and the same request is made again if it is not there.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from _ledgers import OFFICER, PERSONS, Place, make_ledger
from _print import header
from tempertilt.models.adapter import load_adapter
from tempertilt.requests import Ledger
from tempertilt.requests.ledger import verify
from tempertilt.requests.state import ACTIVE

WRITING = (
    "requests/ledger.py",
    "requests/adding.py",
    "requests/database.py",
    "requests/head.py",
    "requests/work.py",
    "storage.py",
)

LAST = 200


def lines_run(action: Callable[[], object], stop: int = sys.maxsize) -> int:
    """Run an action; kill this process before the line of number `stop`. The number of lines of the code that writes."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.endswith(WRITING):
            return None
        if event == "line":
            if count == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
        return trace

    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(None)
    return count


def in_child(action: Callable[[], object], seconds: float | None = None) -> bool:
    """Run an action in a forked process, which is killed after some seconds if it still runs; whether it ended by itself."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("the action failed in a process that was not killed")
    return not os.WIFSIGNALED(status)


def killed_at_line(action: Callable[[], object], line: int) -> bool:
    """Run an action in a forked process, which is killed before a line; whether it ended by itself."""
    return in_child(lambda: lines_run(action, line))


def state_after(directory: Path, name: str, wanted: str, before: int) -> bool:
    """Check a ledger after a kill; whether the event is there.

    Args:
        name: the request that was added or revoked.
        wanted: its state if the event is there: active or revoked.
        before: number of events before.
    """
    faults = verify(directory)
    assert not faults, faults
    ledger = Ledger(directory)
    states = {state.id: state for state in ledger.requests()}
    done = name in states and states[name].state == wanted
    assert len(ledger.events()) == before + done, (len(ledger.events()), before, done)
    there = {path.name for path in (directory / "parts").iterdir()}
    assert there == {state.id for state in states.values() if state.has_files}, there
    assert not (directory / "work").exists() and not list(directory.rglob(".unfinished-*")), list(directory.rglob("*"))
    for part in ledger.active():
        load_adapter(part.directory)
    return done


def killed(
    place: Place, action: Callable[[], object], kill: Callable[[Callable[[], object]], bool], name: str, wanted: str
) -> bool:
    """One kill, the checks, and the action once more where its event is not there; whether it was there."""
    before = len(Ledger(place.directory).events())
    kill(action)
    done = state_after(place.directory, name, wanted, before)
    if not done:
        action()
        assert state_after(place.directory, name, wanted, before)
    return done


def main() -> None:
    """Kill, check, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, there, total = random.Random(args.seed), Counter[str](), Counter[str]()
    header(f"{args.kills} kills while a request is added or revoked")
    with tempfile.TemporaryDirectory() as work:
        made = make_ledger(Path(work))
        place = replace(made, directory=Path(work) / "copy")
        actions = {
            "add": (lambda: place.add("REQ-5", PERSONS[4], replace="REQ-0"), "REQ-5", ACTIVE),
            "revoke": (lambda: place.ledger.revoke("REQ-0", OFFICER, why="asked for"), "REQ-0", "revoked"),
        }
        lines, seconds = {}, {}
        for name, (action, *_) in actions.items():
            shutil.copytree(made.directory, place.directory)
            lines[name] = lines_run(action)
            shutil.rmtree(place.directory)
            shutil.copytree(made.directory, place.directory)
            started = time.perf_counter()
            in_child(action)
            seconds[name] = time.perf_counter() - started
            shutil.rmtree(place.directory)
        print(f"lines of the code that writes {lines}, seconds { ({k: round(v, 3) for k, v in seconds.items()}) }", flush=True)
        for number in range(args.kills):
            name = ("add", "revoke")[number % 2]
            action, request, wanted = actions[name]
            kind = ("before a line", "before one of the last lines", "after a time")[number // 2 % 3]
            if kind == "after a time":
                kill = partial(in_child, seconds=rng.uniform(0, 1.1 * seconds[name]))
            else:
                first = lines[name] - LAST if "last" in kind else 0
                kill = partial(killed_at_line, line=rng.randrange(max(0, first), lines[name]))
            shutil.copytree(made.directory, place.directory)
            total[f"{name}, {kind}"] += 1
            there[f"{name}, {kind}"] += killed(place, action, kill, request, wanted)
            shutil.rmtree(place.directory)
    print("| killed | kills | event whole | no event | verified |\n|---|---|---|---|---|")
    for name, count in total.items():
        print(f"| {name} | {count} | {there[name]} | {count - there[name]} | {count} |")


if __name__ == "__main__":
    main()
