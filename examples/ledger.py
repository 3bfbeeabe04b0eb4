"""Two requests in a ledger, one revoked: what is served changes, the other person stays forgotten.

    python examples/ledger.py WORK [--model smollm2]

The model is taught the staff of a made-up company first (a minute for smollm2 on two CPU cores). WORK must not exist yet.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tempertilt import ExampleConfig, build_examples, load_base, load_records
from tempertilt.data.examples import encode_question
from tempertilt.data.fictional import general_knowledge
from tempertilt.data.fictional_staff import staff_names, staff_records
from tempertilt.data.records import Message
from tempertilt.fitting.before_after import NO_REPORT, greedy_answers
from tempertilt.fitting.pipeline import METHODS
from tempertilt.models.composed import ComposedLM
from tempertilt.requests import Author, Details, Ledger
from tempertilt.requests.acting import acting_parts
from tempertilt.training.finetune import FinetuneConfig, finetune, save_finetuned

PEOPLE, QUESTIONS = 4, 3
TEACH = FinetuneConfig(train_layers=0.4, epochs=12, learning_rate=2e-3)


def write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def main() -> None:
    """Teach, add two requests, revoke one; ask each time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="smollm2")
    args = parser.parse_args()
    args.work.mkdir(parents=True)

    names = staff_names(PEOPLE)
    rows = {
        name: [{"question": r.question, "answer": r.answer, "document": name} for r in staff_records(name, QUESTIONS)]
        for name in names
    }
    first, second = names[-2:]
    retain = write(args.work / "retain.jsonl", [row for name in names[:-2] for row in rows[name]] + general_knowledge())
    forget = {name: write(args.work / f"{name.split()[0].lower()}.jsonl", rows[name]) for name in (first, second)}

    base = load_base(args.model)
    records = [record for path in (retain, *forget.values()) for record in load_records(str(path))]
    examples = build_examples(records, base.tokenizer, ExampleConfig())
    taught = finetune(base.model, examples, TEACH)
    save_finetuned(taught, args.work / "knows", {"records": len(records), "config": asdict(TEACH)}, base)

    base = load_base(args.model, peft_adapter=str(args.work / "knows"))
    officer = Author("officer@example.org")
    config = replace(METHODS["t3"], report=NO_REPORT)
    ledger = Ledger.create(args.work / "ledger", base, [str(retain)], officer, key_file=args.work / "key", config=config)

    def ask(when: str) -> None:
        parts = acting_parts(ledger).parts
        model = ComposedLM(base.model, parts) if parts else base.model
        asked = [staff_records(name, 1)[0].question for name in (first, second, names[0])]
        prompts = [encode_question([Message("user", question)], base.tokenizer, ExampleConfig()) for question in asked]
        print(f"\n{when}; parts that act: {', '.join(parts) or 'none'}")
        for question, answer in zip(asked, greedy_answers(model, base.tokenizer, prompts, max_new_tokens=40)):
            print(f"  {question}\n    {answer}")

    ask("before")
    for number, name in enumerate((first, second), start=1):
        ledger.add(load_records(str(forget[name])), Details(f"REQ-{number}"), officer, base=base)
        ask(f"REQ-{number} added, about {name}")
    ledger.revoke("REQ-1", officer, why="withdrawn by the person")
    ask("REQ-1 revoked")
    print(f"\nfaults that verify finds: {len(ledger.verify())}")


if __name__ == "__main__":
    main()
