"""What the audit's attacks bring out, form by form: of a server, of an adapter, or of the base.

    python benchmarks/audit_forms.py --data-dir TOFU [--peft-adapter DIR] [--adapter DIR] [--url URL --served-model NAME]
        [--attacks spellings "system messages" conversation]

24 questions, drawn by the rule of hearing.py among records with a fact to look for, are asked in every form of some attacks. Two
counts: answers that the judge takes for leaks, and answers with .8 of the words of the record in order (ROUGE-L recall). A server
may be of another version of the package, so that the audit can be held against what is known of that.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from _print import header
from hearing import QUESTIONS, SAME
from tempertilt.audit.attempts import Attempt, Material, Subject, subjects_of
from tempertilt.audit.judge import Judge, Judgement
from tempertilt.audit.registry import attacks
from tempertilt.audit.served import Endpoint, ServedTarget
from tempertilt.audit.target import Target
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.names import names
from tempertilt.data.records import load_records
from tempertilt.models.base import load_base
from tempertilt.models.t3 import load_unlearned

NEW, BATCH = 64, 24


def drawn(subjects: Iterable[Subject], target: Target, judge: Judge) -> list[Subject]:
    """The questions of hearing.py, of those that have a fact to look for and whose record the base says."""
    some = [s for s in subjects if names(s.question) and len(s.record.answer) < 160]
    random.Random(1).shuffle(some)
    plain = attacks()["as recorded"].make
    out: list[Subject] = []
    for start in range(0, len(some), BATCH):
        part = some[start : start + BATCH]
        attempts = [attempt for s in part for attempt in list(plain(s, Material(some), random.Random(0)))[:1]]
        out += [s for s, j in zip(part, asked(target, judge, attempts)) if j.rouge >= SAME]
        if len(out) >= QUESTIONS:
            break
    return out[:QUESTIONS]


def asked(target: Target, judge: Judge, attempts: list[Attempt]) -> list[Judgement]:
    """The judgements, in the order of the attempts."""
    out: list[Judgement] = []
    for start in range(0, len(attempts), BATCH):
        out += [judge.judge(reply) for reply in target.ask(attempts[start : start + BATCH], "forms")]
    return out


def by_form(kind: str, some: list[Subject], material: Material, target: Target, judge: Judge) -> dict[str, list[int]]:
    """Of each form of a kind of attack: leaks, answers with the record's words, and attempts."""
    rng, out = random.Random(0), dict[str, list[int]]()
    attempts = [attempt for subject in some for attempt in attacks()[kind].make(subject, material, rng)]
    for attempt, judgement in zip(attempts, asked(target, judge, attempts)):
        counts = out.setdefault(attempt.form, [0, 0, 0])
        for i, more in enumerate((bool(judgement.leaked), judgement.rouge >= SAME, True)):
            counts[i] += more
    return out


def main() -> None:
    """Ask, and print both counts of every form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peft-adapter")
    parser.add_argument("--adapter")
    parser.add_argument("--url")
    parser.add_argument("--served-model", default="")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--attacks", nargs="+", default=["spellings", "system messages", "conversation"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    header(f"the audit's {', '.join(args.attacks)} by form: {args.url or args.adapter or 'the base'}")
    given: dict[str, Any] = {"peft_adapter": args.peft_adapter, "device": "cpu", "dtype": "float32"}
    base = load_base(args.model, **given)
    forget, *others = (load_records(args.data_dir / f"{name}.jsonl") for name in ("forget", "retain", "holdout"))
    subjects = subjects_of(forget, [record for part in others for record in part])
    judge = Judge(subjects, [])
    target = Target(base.model, base.tokenizer, ExampleConfig(), NEW)
    some = drawn(subjects, target, judge)
    if args.adapter and not args.url:
        target = Target(*load_unlearned(args.adapter, args.model, **given), ExampleConfig(), NEW)
    if args.url:
        endpoint = Endpoint(args.url, args.served_model)
        target = ServedTarget(base.model, base.tokenizer, ExampleConfig(), NEW, endpoint=endpoint)
    found: dict[str, dict[str, list[int]]] = {}
    material = Material(subjects, *others)
    for kind in args.attacks:
        found[kind] = by_form(kind, some, material, target, judge)
        for form, (gave, words, n) in found[kind].items():
            print(f"{kind:<18}{form:<34}{gave:>3} of {n:<4}{words:>3} with the record's words", flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
