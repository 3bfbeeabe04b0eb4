"""What the experiments share: the model that knows thirty TOFU authors, its records, and sets of text that is not to change."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for _print, which all benchmarks share
from _print import header, save
from tempertilt.data.batches import pad_batch, plan_batches
from tempertilt.data.examples import Example, ExampleConfig, build_examples
from tempertilt.data.records import Record, check_records, load_records
from tempertilt.models.base import BaseModel, load_base

__all__ = ["Sets", "check_records", "header", "load", "options", "record", "rows", "save", "states", "unseen"]

CHAT = Path(__file__).with_name("chat.txt")


def options(description: str | None) -> argparse.ArgumentParser:
    """The flags of every experiment."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peft-adapter", required=True, help="makes the model know the thirty authors")
    parser.add_argument("--data", type=Path, required=True, help="the 30-author cut of TOFU")
    parser.add_argument("--save", type=Path)
    return parser


class Sets(dict[str, list[Record]]):
    """Records by set: forget, retain, holdout, their paraphrases, real authors, world facts, chat."""

    def __init__(self, data: Path) -> None:
        super().__init__()
        for name in ("forget", "retain", "holdout"):
            self[name] = load_records(data / f"{name}.jsonl")
        for name in ("forget", "retain"):
            self[f"{name} paraphrased"] = [
                record(row["paraphrased_question"], row["paraphrased_answer"], row.get("document", name))
                for row in rows(data / f"{name}_perturbed.jsonl")
            ]
        for name in ("real_authors", "world_facts"):
            self[name.replace("_", " ")] = [
                record(row["question"], row["answer"], f"{name} {i}")
                for i, row in enumerate(rows(data / f"{name}_perturbed.jsonl"))
            ]
        self["chat"] = [
            record(line, "Of course.", f"chat {i}") for i, line in enumerate(CHAT.read_text("utf-8").splitlines()) if line.strip()
        ]

    def examples(self, name: str, base: BaseModel) -> list[Example]:
        """One set, tokenised."""
        return build_examples(self[name], base.tokenizer, ExampleConfig())


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def record(question: str, answer: str, document: str) -> Record:
    """A question and its answer."""
    return Record.from_question(question, answer, document=document, source=document)


def load(args: argparse.Namespace) -> tuple[BaseModel, Sets]:
    """The model and the records."""
    return load_base(args.model, peft_adapter=args.peft_adapter), Sets(args.data)


def unseen(documents: Sequence[str], folds: int = 5, seed: int = 0) -> list[set[str]]:
    """The documents in `folds` parts, by chance."""
    names = sorted(set(documents))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return [{names[i] for i in order[fold::folds]} for fold in range(folds)]


@torch.inference_mode()
def states(base: BaseModel, examples: Sequence[Example], layers: Sequence[int]) -> list[dict[int, Tensor]]:
    """For each example the states after so many decoder layers, of all its tokens: `(n, d)` float16."""
    out: list[dict[int, Tensor]] = [{} for _ in examples]
    for batch in plan_batches(examples, 2048):
        padded = pad_batch([examples[i] for i in batch], base.model.device)
        run = base.model.model(
            input_ids=padded.input_ids, attention_mask=padded.attention_mask, output_hidden_states=True, use_cache=False
        )
        for layer in layers:
            for i, of in zip(batch, run.hidden_states[layer].half().cpu()):
                out[i][layer] = of[: len(examples[i])].clone()
    return out
