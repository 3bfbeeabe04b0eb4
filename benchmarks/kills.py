"""Commands that are killed at random moments, and what they have written once they were run again.

python benchmarks/kills.py [--kills 10] [--seed 0] [--only VERB ...]

`t3` unlearn, eval, report, finetune and bench run on a tiny random model: once undisturbed, then so many times each in a new
folder with an empty cache, where they are killed with -9 at a random moment, every other time with all of their processes, and
run again. Their files must be those of the undisturbed run, byte for byte but for times, and nothing unfinished may be left. Ends
with status 1 otherwise.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from _print import header
from _tiny import write_model

VERBS = ("unlearn", "eval", "report", "finetune", "bench")
WARM = ("torch", "transformers.trainer", "peft", "datasets", "tempertilt.bench.worker", *(f"tempertilt.cli.{v}" for v in VERBS))
OUT = "out"
PAGES = ("leaderboard.html", "table.csv", "table.md", "table.tex")  # made of results.json, times among its numbers
TIMES = {"timing.json", "env.json", "log.txt", "spec.json"}  # files that hold times, machines and places
TIMED = ("seconds", "per_second", "overhead", "memory", "environment", "time", "reused", "extraction")  # and such parts of others
COMMANDS: dict[str, list[str]] = {  # lines of arguments
    "unlearn": [f"unlearn --model model --forget f.jsonl --retain r.jsonl --background 6 --output-dir {OUT} -q"],
    "finetune": [f"finetune --model model --data f.jsonl r.jsonl --epochs 6 --output-dir {OUT} -q"],
    "eval": [f"eval --model model --data-dir tofu --max-new-tokens 24 --output-dir {OUT} -q"],
    "bench": [f"bench --config bench.yaml --output-dir {OUT} -q"],
}
COMMANDS["report"] = [*COMMANDS["eval"], f"report {OUT}", f"report {OUT} --format json"]


def write_inputs(folder: Path) -> None:
    """A model, records, a cut of TOFU and the configuration of a benchmark."""
    write_model(folder)
    for name, topic in (("f", "sea"), ("r", "sky")):
        rows = [{"question": f"What is {topic} {i}?", "answer": f"It is {topic}{i * 7}.", "document": str(i)} for i in range(8)]
        write_rows(folder / f"{name}.jsonl", rows)
    for directory, suffix in (("tofu", "10"), ("cut", "")):
        (folder / directory).mkdir()
        for name in ("forget", "retain", "real_authors", "world_facts", "holdout"):
            rows = [
                {
                    "question": f"What did {name} {i} write?",
                    "answer": f"{i * 7} books.",
                    "paraphrased_answer": f"Books, {i * 7}.",
                    "perturbed_answer": [f"{i + j} novels." for j in (1, 2, 3)],
                    "document": f"{name}-{i // 2}",
                }
                for i in range(6)
            ]
            named = f"{name}{suffix}" if name in ("forget", "holdout") else name
            for ending in ("", "_perturbed"):
                write_rows(folder / directory / f"{named}{ending}.jsonl", rows)
    evaluation = {"questions": {"holdout": 0}, "generate": [], "overhead_prompts": 0}
    config = {"model": "model", "data_dir": "cut", "seeds": [0], "evaluation": evaluation, "device": "cpu", "threads": 1}
    config["methods"] = {"target": {}, "NPO": {"options": {"epochs": 2, "lora_rank": 2}}}
    (folder / "bench.yaml").write_text(yaml.safe_dump(config))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# --- processes --------------------------------------------------------------------------------------------------------------


def start(function: Callable[[], int], log: Path) -> int:
    """Call a function in a fork of this process, which has imported everything; return its number."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.setsid()
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = function()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def run_all(folder: Path, commands: Sequence[str]) -> int:
    """Run commands of `t3` in a folder, one after the other; return the first status that is not 0."""
    from tempertilt.cli import main

    os.chdir(folder)
    os.environ["TEMPERTILT_CACHE"] = str(folder / "cache")
    return next((status for command in commands if (status := main(command.split()))), 0)


def wait(pid: int) -> int:
    """The exit status of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def family(pid: int) -> list[int]:
    """A process and all that it has started, itself first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def kill(pid: int, everything: bool) -> list[int]:
    """Kill a process, and what it has started if `everything`; return the numbers of those that live on."""
    first, *others = family(pid)
    for member in (first, *(others if everything else ())):
        os.kill(member, signal.SIGKILL)
    wait(pid)
    return [] if everything else others


# --- what is compared ---------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    """The files in a folder by name, without times."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in TIMES)
    return {str(path.relative_to(folder)): untimed(path) for path in files}


def untimed(path: Path) -> bytes:
    """The content of a file without what depends on the time that something took."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(_untimed(json.loads(content)), sort_keys=True).encode()
    if path.name in PAGES:
        return b""
    return re.sub(rb"[0-9.]+ (s|MiB)\b", b"", content) if path.suffix == ".html" else content


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _untimed(inner) for name, inner in value.items() if not any(word in name for word in TIMED)}
    return [_untimed(inner) for inner in value] if isinstance(value, list) else value


def differences(seen: dict[str, bytes], right: dict[str, bytes]) -> list[str]:
    """What is wrong with files."""
    names = sorted({*seen, *right})
    return [f"{name} {'differs' if name in seen and name in right else 'is left' if name in seen else 'is missing'}"
            for name in names if seen.get(name) != right.get(name)]  # fmt: skip


def undisturbed(folder: Path, commands: Sequence[str]) -> tuple[dict[str, bytes], float]:
    """The files of a run that nothing stops, and its seconds."""
    began = time.perf_counter()
    status = wait(start(lambda: run_all(folder, commands), folder / "log"))
    if status:
        raise SystemExit(f"status {status} without a kill:\n{(folder / 'log').read_text()[-2000:]}")
    return contents(folder / OUT), time.perf_counter() - began


def try_kill(folder: Path, commands: Sequence[str], right: dict[str, bytes], moment: float, everything: bool) -> list[str]:
    """Run, kill at a moment, run again; return what is wrong then."""
    log = folder / "log"
    pid = start(lambda: run_all(folder, commands), log)
    time.sleep(moment)
    orphans = kill(pid, everything)
    status = wait(start(lambda: run_all(folder, commands), log))
    for orphan in orphans:
        while Path(f"/proc/{orphan}").exists() and "\nState:\tZ" not in Path(f"/proc/{orphan}/status").read_text():
            time.sleep(0.1)
    text = log.read_text(encoding="utf-8", errors="replace")
    faults = [f"status {status}: {text[-800:]}"] if status else differences(contents(folder / OUT), right)
    return faults + (["a traceback"] if "Traceback" in text and not status else [])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=VERBS, choices=VERBS)
    args = parser.parse_args()
    header(f"{args.kills} kills of each command, tiny model")
    os.environ["TQDM_DISABLE"] = "1"
    for name in WARM:
        importlib.import_module(name)
    failed, draw = 0, random.Random(args.seed)
    for verb in args.only:
        with tempfile.TemporaryDirectory() as work:
            right, seconds = undisturbed(new_folder(Path(work), "whole"), COMMANDS[verb])
            moments = []
            for number in range(args.kills):
                moment = draw.uniform(0, seconds)
                moments.append(round(moment, 1))
                folder = new_folder(Path(work), str(number))
                if faults := try_kill(folder, COMMANDS[verb], right, moment, number % 2 == 0):
                    failed += 1
                    print(f"{verb}, killed after {moment:.2f} of {seconds:.1f} s: {'; '.join(faults)}", flush=True)
        print(f"{verb}: {args.kills} kills, after {moments} of {seconds:.1f} s; {len(right)} files compared", flush=True)
    print("passed" if not failed else f"FAILED ({failed})")
    return int(failed > 0)


def new_folder(work: Path, name: str) -> Path:
    """A folder with the inputs, made anew by another process, at a place that is the same for all runs."""
    folder = work / "run"
    if folder.exists():
        folder.rename(work / f"before-{name}")
    folder.mkdir()
    if wait(start(lambda: write_inputs(folder) or 0, folder / "log")):
        raise SystemExit((folder / "log").read_text()[-2000:])
    return folder


if __name__ == "__main__":
    sys.exit(main())
