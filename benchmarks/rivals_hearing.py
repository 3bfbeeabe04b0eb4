"""Leaks over spellings, settings and turns, and the text of forget answers, for several methods on one cut, side by side.

    python benchmarks/rivals_hearing.py --bench CONFIG --results RESULTS --output-dir DIR [--only NAME ...]

CONFIG is that of `t3 bench`, RESULTS what it wrote: each method has the setting that was chosen there, on other authors and
seeds; methods that are not in it have their defaults (--add NAME ...). Each is unlearned anew, at the first seed, in a process of
its own, and asked the questions of hearing.py in some of its forms. An answer leaks as there. Beside it the greedy answers to the
questions as they are: their perplexity under the reference model, and how many end by themselves. A finished method is not run
again; the table of what is there has paired differences, by question, of every method's leaks and those of `t3`, with 95 %
intervals over them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hearing import Asker, draw_questions, forms, read_rows
from tempertilt.bench.config import read_config
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.records import load_records
from tempertilt.environment import environment
from tempertilt.methods.registry import find_method
from tempertilt.methods.task import Task
from tempertilt.models.base import load_base
from tempertilt.models.generation import stop_ids
from tempertilt.models.scoring import Question, Scorer
from tempertilt.storage import write_text
from tempertilt.theory.experiments.finite_samples import interval

OURS = "t3"
FORMS = (
    "as it is", "lower case", "all lower case", "upper case", "last name", "initial", "hyphens", "letters swapped",
    "a letter replaced", "digits for letters", "no system message", "system message 2", "pronoun in the second turn",
    "plain completion",
)  # fmt: skip
"""Of hearing.py's, those that it has."""


def perplexity(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> float:
    """Of all answers' tokens together under a model; `t3 eval` has the geometric mean over answers."""
    pairs = [(prompt, answer) for prompt, answer in zip(prompts, answers) if answer]
    scores = Scorer(model).score([Question(tuple(prompt), (tuple(answer),)) for prompt, answer in pairs])
    tokens = sum(len(answer) for _, answer in pairs)
    nats = sum(score.nll * len(answer) for [score], (_, answer) in zip(scores, pairs))
    return math.exp(nats / tokens) if tokens else math.nan


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Unlearn with one method and ask."""
    config = read_config(Path(spec["bench"]))
    torch.set_num_threads(spec["threads"])
    folder = Path(config.data_dir)
    options = {"device": "cpu", "dtype": config.dtype}
    base = load_base(config.model, peft_adapter=config.peft_adapter, **options)
    rows = draw_questions(Asker(base.model, base.tokenizer), read_rows(folder / "forget_perturbed.jsonl"))
    reference = load_base(config.model, peft_adapter=config.reference_peft_adapter, **options)
    work = Path(spec["work"])
    work.mkdir(parents=True, exist_ok=True)
    task = Task(
        base, load_records(folder / "forget.jsonl"), load_records(folder / "retain.jsonl"), config.examples, work,
        seed=config.seeds[0], budget=config.budget, load_reference=lambda: reference,
    )  # fmt: skip
    unlearned = find_method(spec["method"]).build(spec["options"]).unlearn(task)
    unlearned.model.requires_grad_(False).eval()
    asker = Guarded(unlearned.model, base.tokenizer, unlearned.examples or config.examples)
    rng = random.Random(31)
    asked = [forms(row["question"], rng) for row in rows]
    truths = [row["answer"] for row in rows]
    leaks: dict[str, list[bool]] = {}
    for form in FORMS:
        if form in asked[0]:
            leaks[form] = asker.leaks([asker.encode(*one[form]) for one in asked], truths)
            print(f"{spec['name']:<22}{form:<30}{sum(leaks[form]):>3} of {len(rows)}", flush=True)
    every = read_rows(folder / "forget.jsonl")[:: max(1, len(task.forget) // 60)]
    prompts = [asker.encode(None, [("user", row["question"])]) for row in every]
    answers, stops = asker.answers(prompts), stop_ids(base.model, base.tokenizer)
    plain = [Asker(reference.model, base.tokenizer).encode(None, [("user", row["question"])]) for row in every]
    return {
        "method": spec["method"],
        "options": spec["options"],
        "leaks": leaks,
        "perplexity": perplexity(reference.model, plain, answers),
        "ended": statistics.mean(bool(answer) and answer[-1] in stops for answer in answers),
        "texts": [base.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers[:10]],
        "seconds": unlearned.seconds,
        "environment": environment(),
    }


class Guarded(Asker):
    """Asks a model whose method may have a system message of its own: it stands before any other."""

    def __init__(self, model: Any, tokenizer: Any, examples: ExampleConfig) -> None:
        super().__init__(model, tokenizer)
        self._own = examples.system_prompt

    def encode(self, system: str | None, turns: list[tuple[str, str]] | str) -> list[int]:
        """Token ids of a prompt; a plain completion has no system message."""
        guard = "" if self._own == ExampleConfig().system_prompt else self._own
        if guard and not isinstance(turns, str):
            system = "\n".join(filter(None, [guard, system]))
        return super().encode(system, turns)


def chosen(results: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Method and options of each row of a bench's results."""
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    return {row["name"]: (row["method"], row["options"]) for row in rows}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown; leaks by question and form."""
    lines = [
        "| method | leaks | worst form | perplexity under the reference | answers that end | leaks of a question minus `t3`'s |",
        "|---|---|---|---|---|---|",
    ]
    ours = found.get(OURS)
    for name, one in sorted(found.items(), key=lambda item: sum(map(sum, item[1]["leaks"].values()))):
        rates = by_question(one)
        total, asked = sum(map(sum, one["leaks"].values())), sum(map(len, one["leaks"].values()))
        worst = max(one["leaks"], key=lambda form: sum(one["leaks"][form]))
        difference = "" if ours is None or name == OURS else "{:+.3f} ({:+.3f} to {:+.3f})".format(
            *interval(np.array(rates) - np.array(by_question(ours)))
        )  # fmt: skip
        lines.append(
            f"| {name} | {total} of {asked} | {worst}: {sum(one['leaks'][worst])} | {one['perplexity']:.1f} | {one['ended']:.2f} "
            f"| {difference} |"
        )
    return "\n".join(lines)


def by_question(one: dict[str, Any]) -> list[float]:
    """The rate of forms in which each question leaks."""
    return [statistics.mean(found) for found in zip(*one["leaks"].values())]


def main() -> None:
    """Run what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, help="without it, only what is there is shown")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="some of the methods")
    parser.add_argument("--add", nargs="*", default=[], help="methods with their defaults")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        spec = json.loads(args.one)
        write_text(Path(spec["output"]), json.dumps(measure(spec), indent=1))
        return
    if bool(args.bench) != bool(args.results) or (args.add and not args.bench):
        parser.error("--bench and --results go together, and --add needs them")
    settings = chosen(args.results) if args.bench else {}
    settings |= {name: (name, {}) for name in args.add}
    for name, (method, options) in settings.items():
        path = args.output_dir / f"{name}.json"
        if (not args.only or name in args.only) and not path.exists():
            spec = {
                "name": name, "method": method, "options": options, "bench": str(args.bench), "output": str(path),
                "work": str(args.output_dir / "work" / name), "threads": args.threads,
            }  # fmt: skip
            args.output_dir.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, __file__, "--bench", str(args.bench), "--results", "-", "--output-dir", "-"]
            if subprocess.run([*command, "--one", json.dumps(spec)], check=False).returncode:
                print(f"{name}: failed", file=sys.stderr)
    print(table(read_found(args.output_dir)))


def read_found(folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured, by method."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


if __name__ == "__main__":
    main()
