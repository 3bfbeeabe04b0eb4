"""What the audit says of different ways to unlearn: the same attacks, on the same records, in the same time.

    python benchmarks/audit_methods.py --data-dir TOFU --peft-adapter DIR --reference-peft-adapter DIR --out FILE
        [--methods target reference OutputFilter RMU t3-paper t3] [--budget 240] [--records 24] [--train-seconds 120]

Attacked are the first records, from all over the forget set, whose facts the base gives when it is simply asked. `target` is the
model before unlearning, `reference` one that never saw the records: what the judge takes for leaks there are its mistakes. A
method trains for at most so many seconds. Finished methods in FILE are not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from _print import header, save
from tempertilt.audit.attempts import subjects_of
from tempertilt.audit.judge import given
from tempertilt.audit.run import AuditConfig, Sources, run_audit
from tempertilt.audit.summary import summarise
from tempertilt.bench.config import Setting
from tempertilt.data.batches import spread
from tempertilt.data.examples import ExampleConfig, encode_prompt
from tempertilt.data.records import Record, load_records
from tempertilt.fitting.before_after import greedy_token_ids
from tempertilt.methods.task import Budget, Task
from tempertilt.models.base import BaseModel, load_base

ASKED = 3  # times as many records as are attacked are asked for
NEW = 48
OPTIONS = {"RMU": {"layer": 20, "learning_rate": 1e-3, "steering": 20, "epochs": 5}}
"""Of bench_small.yaml, for a model of thirty layers of which the upper half trains."""


def known(base: BaseModel, forget: list[Record], others: list[Record], count: int) -> list[Record]:
    """Records whose facts the base gives."""
    subjects = spread(subjects_of(forget, others), ASKED * count)
    prompts = [encode_prompt(subject.record, base.tokenizer, ExampleConfig()) for subject in subjects]
    answers = base.tokenizer.batch_decode(
        greedy_token_ids(base.model, base.tokenizer, prompts, max_new_tokens=NEW), skip_special_tokens=True
    )
    told = [s.record for s, text in zip(subjects, answers) if given(s.facts, s.telling, text, s.question)]
    return told[:count]


def attacked(args: argparse.Namespace, method: str, sources: Sources, work: Path) -> dict[str, Any]:
    """Unlearn all forget records by a method, attack, and sum up."""
    base = load_base(args.model, peft_adapter=args.peft_adapter, device="cpu", dtype="float32")
    task = Task(
        base=base,
        forget=load_records(args.data_dir / "forget.jsonl"),
        retain=load_records(args.data_dir / "retain.jsonl"),
        examples=ExampleConfig(),
        work_dir=work,
        budget=Budget(train_seconds=args.train_seconds),
        load_reference=lambda: load_base(args.model, peft_adapter=args.reference_peft_adapter, device="cpu", dtype="float32"),
    )
    unlearned = Setting(method, OPTIONS.get(method, {})).build().unlearn(task)
    unlearned.model.requires_grad_(False).eval()
    config = AuditConfig(draws=1, unchanged=12, max_new_tokens=NEW, attempts=args.records, records=args.records)
    examples = unlearned.examples or ExampleConfig()
    journal = work / "journal.jsonl"
    audit = run_audit(
        unlearned.model, base.tokenizer, sources, config, journal, examples=examples, budget=args.budget, progress=False
    )
    return summarise(audit)


def main() -> None:
    """Attack each, print a line for each kind of attack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peft-adapter")
    parser.add_argument("--reference-peft-adapter")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["target", "reference", "OutputFilter", "RMU", "t3-paper", "t3"])
    parser.add_argument("--records", type=int, default=24)
    parser.add_argument("--budget", type=float, default=240, help="seconds of attacks for each")
    parser.add_argument("--train-seconds", type=float, default=120)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    header(f"the audit of {', '.join(args.methods)}")
    forget, retain, holdout = (load_records(args.data_dir / f"{name}.jsonl") for name in ("forget", "retain", "holdout"))
    base = load_base(args.model, peft_adapter=args.peft_adapter, device="cpu", dtype="float32")
    some = known(base, forget, [*retain, *holdout], args.records)
    print(f"{len(some)} records are attacked")
    sources = Sources(some, retain, holdout)
    found = json.loads(args.out.read_text(encoding="utf-8"))["methods"] if args.out.exists() else {}
    for method in args.methods:
        if method not in found:
            with tempfile.TemporaryDirectory() as work:
                found[method] = attacked(args, method, sources, Path(work))
            save(args.out, {"records": len(some), "budget": args.budget, "methods": found})
        every = found[method]["all"]
        bound = f"at most {every['upper_bound_95']:.3f}" if every["n"] else "nothing was asked in the time"
        print(f"{method}: {every['leaks']} of {every['n']}, {bound}", flush=True)
    kinds = sorted({kind["name"] for summary in found.values() for kind in summary["kinds"]})
    print("\n| leaks | " + " | ".join(found) + " |\n" + "|---" * (len(found) + 1) + "|")
    for kind in ["**all**", *kinds]:
        print("| " + " | ".join([kind, *(cell(summary, kind) for summary in found.values())]) + " |")


def cell(summary: dict[str, Any], kind: str) -> str:
    """Leaks of a kind of attack, or of all."""
    rows = {row["name"]: row for row in summary["kinds"]} | {"**all**": summary["all"]}
    return f"{rows[kind]['leaks']} of {rows[kind]['n']}" if kind in rows else "–"


if __name__ == "__main__":
    main()
