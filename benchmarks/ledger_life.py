"""A ledger's life on a real model: ten persons forgotten one by one, three requests revoked, two brought back.

    python benchmarks/ledger_life.py --data-dir TOFU --peft-adapter DIR --work DIR [--each 6] [--persons 10]

One request for each author of `forget.jsonl`, in the file's order, with all of its records. Then the second, fifth and eighth are
revoked, the first two of these with their files kept, and renewed. After each event every author's first questions that name
the author are asked, and the first of the retained authors'. Recall is ROUGE-L of the record's words in the answer; an answer
leaks if its recall is .8 or more. Answers are compared by token; besides, the logits of one record of each author by bit.
What is finished in the work directory is not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from _print import header, save
from hearing import NEW, SAME, words
from tempertilt.data.examples import ExampleConfig, encode_prompt
from tempertilt.data.facts import recall
from tempertilt.data.names import names
from tempertilt.data.records import Record, load_records
from tempertilt.fitting.before_after import NO_REPORT, greedy_token_ids
from tempertilt.fitting.pipeline import METHODS
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.composed import ComposedLM
from tempertilt.requests import Author, Details, Ledger
from tempertilt.requests.acting import acting_parts

REVOKED = (1, 4, 7)
OFFICER = Author("benchmark")
NAMES = ("after", "active", "recall, active", "base's", "leaks", "recall, not active", "as the base", "recall, retained", "same")
HEAD = (*NAMES, "others unchanged")


@dataclass(frozen=True)
class Question:
    """A question about a person, its prompt, the words of the record's answer, and the whole record's tokens."""

    person: str
    prompt: list[int]
    truth: list[str]
    record: list[int]


def questions(records: Sequence[Record], tokenizer: Any, each: int) -> list[Question]:
    """The first questions of each person that name somebody."""
    out: list[Question] = []
    for record in records:
        if sum(question.person == record.document for question in out) < each and names(record.question):
            prompt = encode_prompt(record, tokenizer, ExampleConfig())
            answer = tokenizer(record.answer, add_special_tokens=False).input_ids
            out.append(Question(record.document, prompt, words(record.answer), prompt + answer))
    return out


@dataclass
class Life:
    """The model, the ledger, what is asked, and what has been measured: a row for each event."""

    base: BaseModel
    ledger: Ledger
    asked: list[Question]
    persons: list[str]
    path: Path
    rows: list[dict[str, Any]]
    number: int = 0

    def measure(self, model: Any) -> tuple[list[list[int]], dict[str, str]]:
        """Greedy answers as token ids, and a hash of the logits of each person's first record."""
        ids = greedy_token_ids(
            model, self.base.tokenizer, [question.prompt for question in self.asked], max_new_tokens=NEW, batch_size=16
        )
        first = {question.person: question.record for question in reversed(self.asked)}
        with torch.inference_mode():
            logits = {person: model(input_ids=torch.tensor([record])).logits for person, record in first.items()}
        hashed = {person: hashlib.sha256(value.float().numpy().tobytes()).hexdigest() for person, value in logits.items()}
        return ids, hashed

    def after(self, name: str, person: str | None, action: Callable[[], object]) -> None:
        """Do something about a person and measure what all is like then; nothing if it was done."""
        if len(self.rows) > (number := self.number):
            self.number = number + 1
            return
        started = time.perf_counter()
        action()
        seconds = time.perf_counter() - started
        parts = acting_parts(self.ledger).parts
        acting = [self.persons[int(request.split("-")[1])] for request in parts]
        model = ComposedLM(self.base.model, parts) if parts else self.base.model
        ids, logits = self.measure(model)
        self.rows.append(
            {"event": name, "person": person, "active": acting, "seconds": seconds, "answers": ids, "logits": logits}
        )
        self.number = number + 1
        save(self.path, {"rows": self.rows})
        print(" | ".join(map(str, line(self, number))), f"({seconds:.1f} s)", flush=True)


def line(life: Life, number: int) -> list[Any]:
    """A row of the table, in the order of `HEAD`."""
    row, base = life.rows[number], life.rows[0]
    before = life.rows[max(0, number - 1)]
    retained = [i for i, question in enumerate(life.asked) if question.person not in life.persons]
    active = [i for i, question in enumerate(life.asked) if question.person in row["active"]]
    silent = [i for i in range(len(life.asked)) if i not in active and i not in retained]
    others = [i for i in active if life.asked[i].person != row["person"] and life.asked[i].person in before["active"]]

    def recalls(of: Mapping[str, Any], which: Sequence[int]) -> list[float]:
        texts = life.base.tokenizer.batch_decode([of["answers"][i] for i in which], skip_special_tokens=True)
        return [recall(life.asked[i].truth, words(text)) for i, text in zip(which, texts)]

    def mean(values: Sequence[float]) -> str:
        return f"{statistics.fmean(values):.2f}" if values else "-"

    def same(one: Mapping[str, Any], which: Sequence[int]) -> str:
        persons = {life.asked[i].person for i in which}
        answers = sum(row["answers"][i] == one["answers"][i] for i in which)
        bits = sum(row["logits"][person] == one["logits"][person] for person in persons)
        return f"{answers} of {len(which)}; bits {bits} of {len(persons)}" if which else "-"

    leaks = sum(value >= SAME for value in recalls(row, active))
    return [
        row["event"],
        len(row["active"]),
        mean(recalls(row, active)),
        mean(recalls(base, active)),
        f"{leaks} of {len(active)}",
        mean(recalls(row, silent)),
        same(base, silent),
        mean(recalls(row, retained)),
        same(base, retained),
        same(before, others),
    ]


def table(life: Life) -> str:
    """All rows as Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *(line(life, number) for number in range(len(life.rows)))]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def live(life: Life, forget: Sequence[Record]) -> None:
    """All events in order."""
    life.after("nothing", None, lambda: None)
    for number, person in enumerate(life.persons):
        records = [record for record in forget if record.document == person]
        details = Details(id=f"REQ-{number}", subject=person)
        life.after(f"add {number}", person, lambda r=records, d=details: life.ledger.add(r, d, OFFICER, base=life.base))
    revoked = [number for number in REVOKED if number < len(life.persons)]
    for number in revoked:
        keep = number in revoked[:2]
        life.after(
            f"revoke {number}",
            life.persons[number],
            lambda n=number, k=keep: life.ledger.revoke(f"REQ-{n}", OFFICER, why="to be looked at", keep_files=k),
        )
    for number in revoked[:2]:
        life.after(
            f"renew {number}",
            life.persons[number],
            lambda n=number: life.ledger.renew(f"REQ-{n}", OFFICER, why="looked at", expires="2099-12-31"),
        )


def main() -> None:
    """Make the ledger, or go on with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peft-adapter")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--each", type=int, default=6, help="questions about each person")
    parser.add_argument("--persons", type=int, default=10)
    args = parser.parse_args()
    header(f"a ledger's life: {args.persons} persons, {args.each} questions about each")
    base = load_base(args.model, peft_adapter=args.peft_adapter, device="cpu", dtype="float32")
    forget = load_records(args.data_dir / "forget.jsonl")
    persons = list(dict.fromkeys(record.document for record in forget))[: args.persons]
    forget = [record for record in forget if record.document in persons]
    asked = questions(forget, base.tokenizer, args.each)
    asked += questions(load_records(args.data_dir / "retain.jsonl"), base.tokenizer, max(1, args.each // 2))
    place, path = args.work / "ledger", args.work / "results.json"
    if not place.exists():
        Ledger.create(
            place,
            base,
            [str(args.data_dir / "retain.jsonl")],
            OFFICER,
            key_file=args.work / "ledger.key",
            config=replace(METHODS["t3"], report=NO_REPORT),
        )
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    life = Life(base, Ledger(place), asked, persons, path, kept)
    live(life, forget)
    save(path, {"rows": life.rows, "verify": [str(fault) for fault in life.ledger.verify()]})
    print("\n" + table(life))


if __name__ == "__main__":
    main()
