"""One person of a housing association is forgotten; each of the eight is asked about in other words.

    cd benchmarks/small_requests/corpus/housing
    grep '"tomasz-wieczorek"' records.jsonl > DIR/forget.jsonl; grep -v '"tomasz-wieczorek"' records.jsonl > DIR/retain.jsonl
    t3 finetune --model smollm2 --data DIR/forget.jsonl DIR/retain.jsonl --epochs 20 --output-dir DIR/full
    t3 unlearn --model smollm2 --peft-adapter DIR/full --forget DIR/forget.jsonl --retain DIR/retain.jsonl --output-dir DIR/t3
    python benchmarks/small_requests/housing.py DIR/t3 --peft-adapter DIR/full

The records and prompts were written by somebody who did not know how the gates are made. An answer leaks if it holds one of the
prompt's values, letters and digits alone compared. What is asked about others is to be answered as before: the 60 prompts of
others.jsonl, and the person's own questions with the name of each of the seven others, as they are and in lower case. There the
base often says the forgotten person's values of others, which is counted apart; those answers are to change.
"""

from __future__ import annotations

import argparse
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.data.facts import facts_of
from tempertilt.data.records import Message, Record, load_records
from tempertilt.data.subjects import subject_names
from tempertilt.environment import environment
from tempertilt.fitting.before_after import greedy_token_ids
from tempertilt.metrics.leakage import Answer, leaked
from tempertilt.models.t3 import load_unlearned

CORPUS = Path(__file__).with_name("corpus") / "housing"
FORGOTTEN = "tomasz-wieczorek"
NEW = 64  # tokens of an answer

Chat = list[Message]


def plain(text: str) -> str:
    """Letters and digits alone, small and without accents."""
    return "".join(char for char in unicodedata.normalize("NFKD", text).casefold() if char.isascii() and char.isalnum())


def read(name: str) -> list[dict[str, Any]]:
    """The prompts of a file, with their chats."""
    rows = [json.loads(line) for line in (CORPUS / name).read_text(encoding="utf-8").splitlines()]
    return [row | {"chat": [Message(**message) for message in row["messages"]]} for row in rows]


def in_the_records_words(records: Sequence[Record]) -> list[Chat]:
    """The forgotten person's questions about each of the others."""
    persons = subject_names(records)
    name = persons.pop(FORGOTTEN)
    asked = [record.question for record in records if record.document == FORGOTTEN]
    return [[Message("user", question.replace(name, other))] for question in asked for other in persons.values()]


def main() -> None:
    """Ask, print what leaks and what changes, and the figures as JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peft-adapter")
    args = parser.parse_args()
    model, tokenizer = load_unlearned(args.adapter, args.model, peft_adapter=args.peft_adapter, device="cpu", dtype="float32")

    def texts(chats: Sequence[Chat], base: bool) -> list[str]:
        prompts = [encode_question(chat, tokenizer, ExampleConfig()) for chat in chats]
        return tokenizer.batch_decode(greedy_token_ids(model, tokenizer, prompts, max_new_tokens=NEW, base=base))

    rows = read("prompts.jsonl")
    leaks: dict[str, Counter[str]] = {"base": Counter(), "unlearned": Counter()}
    for name, counts in leaks.items():
        for row, text in zip(rows, texts([row["chat"] for row in rows], name == "base")):
            if any(plain(value) in plain(text) for value in row["values"]):
                counts[row["kind"]] += 1
                if name == "unlearned":
                    print(f"leak: {row['kind']}: {row['chat'][-1].content}\n      {text}", flush=True)
    records = load_records(CORPUS / "records.jsonl")
    asked = in_the_records_words(records)
    others = {
        "other prompts": [row["chat"] for row in read("others.jsonl")],
        "the records' words about others": asked,
        "the same in lower case": [[Message("user", chat[0].content.lower())] for chat in asked],
    }
    own = [fact for record in records if record.document == FORGOTTEN for fact in facts_of(record)]
    answered = {}
    for name, chats in others.items():
        counts = Counter(questions=len(chats))
        for chat, before, after in zip(chats, texts(chats, True), texts(chats, False)):
            theirs = bool(leaked(Answer(chat[-1].content, before, own)))
            counts["base gives a forgotten value"] += theirs
            counts["unlearned gives a forgotten value"] += bool(leaked(Answer(chat[-1].content, after, own)))
            counts["changed, where the base gives none"] += before != after and not theirs
            if before != after:
                print(f"changed: {chat[-1].content}\n      {before}\n      {after}", flush=True)
        answered[name] = dict(counts)
        print(json.dumps({name: answered[name]}), flush=True)
    kinds = Counter(row["kind"] for row in rows)
    figures = {kind: {"n": n} | {name: counts[kind] for name, counts in leaks.items()} for kind, n in kinds.items()}
    print(json.dumps({"leaks": figures, "others": answered, "environment": environment()}, indent=1))


if __name__ == "__main__":
    main()
