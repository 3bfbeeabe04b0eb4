"""A trial in a process of its own: `python -m tempertilt.bench.worker CONFIG TRIAL`, or under `accelerate launch`.

With several processes all of them train; the first one measures and writes.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import statistics
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from tempertilt.bench.config import BenchConfig, Setting, read_config
from tempertilt.bench.trial import EVALUATION, FAILURE, RESULT, Data, load_data
from tempertilt.data.batches import spread
from tempertilt.data.examples import ExampleConfig, encode_prompt
from tempertilt.data.records import Record
from tempertilt.environment import Clock, environment, peak_memory_mib
from tempertilt.errors import TemperTiltError
from tempertilt.methods.task import Task, Unlearned
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.generation import generate_ids
from tempertilt.storage import make_dir, write_text
from tempertilt.suites.items import MeasureConfig, Plan
from tempertilt.suites.tofu import PLAN, TofuConfig, run_tofu

OVERHEAD_ROUNDS = 3


def main(arguments: list[str]) -> int:
    """Run one trial; exit status 0, or 3 where it failed for a reason that trying again would not fix."""
    spec = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
    directory = Path(arguments[1]).parent
    first = os.environ.get("RANK", "0") == "0"
    lock = _lock(directory / ".lock") if first else None  # held until the process ends
    if lock is not None and (directory / RESULT).is_file() and _key(directory / RESULT) == spec["key"]:
        return 0
    try:
        result = run(read_config(arguments[0]), spec, directory)
        if result is not None:
            (directory / FAILURE).unlink(missing_ok=True)
            write_text(directory / RESULT, json.dumps({"key": spec["key"], **result}, indent=1, default=str) + "\n")
    except TemperTiltError as error:
        if first:
            write_text(directory / FAILURE, json.dumps({"key": spec["key"], "error": str(error)}) + "\n")
        traceback.print_exc()
        return 3
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if first:
            shutil.rmtree(directory / "work", ignore_errors=True)
    return 0


def run(config: BenchConfig, spec: dict[str, Any], directory: Path) -> dict[str, Any] | None:
    """Unlearn and measure; None in all processes but the first."""
    for name, place in (("TENSORBOARD_LOGGING_DIR", "tensorboard"), ("WANDB_DIR", ""), ("TRACKIO_DIR", "trackio")):
        os.environ.setdefault(name, str(directory / place))
    os.environ.setdefault("WANDB_PROJECT", "tempertilt")
    if config.threads:
        torch.set_num_threads(config.threads)
    clock, data = Clock(), load_data(config)
    with clock("load"):
        base = _load(config, config.model, config.peft_adapter)
    rank = os.environ.get("RANK", "0")
    task = Task(
        base=base,
        forget=data.forget,
        retain=data.retain,
        examples=config.examples,
        work_dir=make_dir(directory / "work" / f"rank{rank}"),
        seed=spec["seed"],
        budget=config.budget,
        load_reference=_reference(config) if config.has_reference else None,
        report_to=spec.get("report_to", "none"),
        run_name=spec["name"],
    )
    with clock("unlearn"):
        unlearned = Setting(spec["method"], spec["options"]).build().unlearn(task)
    peak = peak_memory_mib()
    if rank != "0":
        return None
    unlearned.model.requires_grad_(False).eval()
    gc.collect()
    examples = unlearned.examples or config.examples
    with clock("evaluation"):
        evaluated = _evaluate(config, unlearned.model, base.tokenizer, data, spec, directory / EVALUATION, examples)
    timed = spec["part"] == "report"
    overhead = _overhead(config, unlearned, base, data) if timed else {"ratio": None, "timed": False}
    return {
        "contender": spec["contender"],
        "method": spec["method"],
        "options": spec["options"],
        "label": spec["label"],
        "seed": spec["seed"],
        "part": spec["part"],
        "seconds": {**unlearned.seconds, "unlearn": clock.seconds["unlearn"], "load": clock.seconds["load"]},
        "evaluation_seconds": {"total": clock.seconds["evaluation"], **evaluated},
        "overhead": overhead,
        "peak_memory_mib": {"unlearning": peak, "whole": peak_memory_mib()},
        "trained_parameters": unlearned.trained_parameters,
        "artefact_bytes": unlearned.artefact_bytes,
        "train_flops": unlearned.train_flops,
        "details": unlearned.details,
        "environment": environment(),
    }


def _load(config: BenchConfig, name: str, adapter: str | None) -> BaseModel:
    return load_base(name, peft_adapter=adapter, device=config.device, dtype=config.dtype)


def _reference(config: BenchConfig) -> Any:
    return lambda: _load(config, config.reference_model or config.model, config.reference_peft_adapter)


def _evaluate(
    config: BenchConfig, model: Any, tokenizer: Any, data: Data, spec: dict[str, Any], directory: Path, examples: ExampleConfig
) -> dict[str, float]:
    """Seconds by step; the samples are in the run folder."""
    options, extras = config.evaluation, config.evaluation.extras(spec["part"])
    measuring = MeasureConfig(
        max_new_tokens=options.max_new_tokens, generation_batch=options.generation_batch, batch_tokens=options.batch_tokens,
        draws=extras.get("draws", 0),
    )  # fmt: skip
    drawn = ("forget",) if extras else ()
    plan = Plan(generated=options.generated(spec["part"]), token_level=PLAN.token_level, drawn=drawn)
    described = {"model": config.model, "peft_adapter": config.peft_adapter, "method": spec["name"]}
    beside = _reference(config)() if "divergence" in extras else None
    done = run_tofu(
        model, tokenizer, data.parts[spec["part"]], directory, config=TofuConfig(split=config.split), measuring=measuring,
        examples=examples, reference_model=beside, describe=described, plan=plan, progress=False,
    )  # fmt: skip
    return {name: round(seconds, 3) for name, seconds in done.seconds.items()}


def _overhead(config: BenchConfig, unlearned: Unlearned, base: BaseModel, data: Data) -> dict[str, Any]:
    """Time of greedy decoding with the method over time without, the same prompts in turn.

    1 by construction, and not timed, where architecture and prompts are the base's: what is trained is merged into the
    weights. None where it is not known, because no prompts are to be timed.
    """
    count, options = config.evaluation.overhead_prompts, config.evaluation
    changes_prompts = unlearned.examples is not None and unlearned.examples != config.examples
    if not (hasattr(unlearned.model, "disable") or changes_prompts):
        return {"ratio": 1.0, "timed": False}
    if not count:
        return {"ratio": None, "timed": False}
    records = [*spread(data.forget, (count + 1) // 2), *spread(data.retain, count // 2)]
    off = unlearned.model.disable if hasattr(unlearned.model, "disable") else nullcontext
    own, plain = (_prompts(records, base, of) for of in (unlearned.examples or config.examples, config.examples))
    ratios = []
    for _ in range(OVERHEAD_ROUNDS):
        with_method = _timed(unlearned.model, base, own, options.overhead_tokens)
        with off():
            without = _timed(unlearned.model, base, plain, options.overhead_tokens)
        ratios.append(with_method / without)
    return {"ratio": statistics.median(ratios), "timed": True, "rounds": ratios}


def _prompts(records: list[Record], base: BaseModel, examples: ExampleConfig) -> list[list[int]]:
    return [encode_prompt(record, base.tokenizer, examples) for record in records]


def _timed(model: Any, base: BaseModel, prompts: list[list[int]], tokens: int) -> float:
    """Seconds a token that is decoded."""
    started = time.perf_counter()
    rows = generate_ids(model, base.tokenizer, prompts, max_new_tokens=tokens)
    return (time.perf_counter() - started) / max(len(row) for of in rows for row in of)


def _lock(path: Path) -> FileLock:
    """An exclusive lock, held until the process ends; waits for another process that holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print("another process is running this trial: waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    return lock


def _key(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError):
        return ""


def spec_of(trial: Any, label: str, report_to: str) -> dict[str, Any]:
    """What the process of a trial reads."""
    return {
        "key": trial.key,
        "name": trial.name,
        "contender": trial.contender,
        "method": trial.setting.method,
        "options": dict(trial.setting.options),
        "label": label,
        "seed": trial.seed,
        "part": trial.part,
        "report_to": report_to,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
