"""What the tests of methods share: a tiny model, records with answers of different lengths, and a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from support.tiny import make_llama, question_rows
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.records import Record
from tempertilt.methods.task import Task
from tempertilt.models.base import BaseModel
from tempertilt.models.fingerprint import fingerprint


def records(n: int, topic: str) -> list[Record]:
    rows = question_rows(n, topic)
    return [
        Record.from_question(r["question"], r["answer"] * (1 + i % 3), document=r["document"], source=f"{topic}:{i}")
        for i, r in enumerate(rows)
    ]


def base_model(tokenizer: Any, seed: int = 0, **overrides: Any) -> BaseModel:
    model = make_llama(seed, **overrides).requires_grad_(False)
    return BaseModel(model, tokenizer, "tiny", None, fingerprint(model))


def make_task(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Task:
    torch.manual_seed(0)
    base = base_model(tokenizer, num_hidden_layers=4)
    work = tmp_path / "work"
    work.mkdir(parents=True)
    return Task(base, records(6, "Hina"), records(7, "Ameen"), ExampleConfig(system_prompt="", max_length=200, overlap=40), work)
