"""A ledger of the tiny model whose parts are made by hand, each with gates that open in some prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from support.gates import gates_for
from tempertilt.fitting.background import BackgroundConfig
from tempertilt.fitting.pipeline import METHODS
from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.composed import ComposedLM
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.requests import Author, Ledger

OFFICER = Author("officer", datetime(2026, 3, 1, 9, 30, tzinfo=timezone.utc))
PROMPTS = ("Who wrote the book about the river?", "Where does the painter live?", "In 1975 the family moved", "system user")


@dataclass
class Place:
    """A ledger, its base, and folders with adapters that can become parts."""

    ledger: Ledger
    base: BaseModel
    adapters: dict[str, Path]
    work: Path

    def add(self, name: str, adapter: str = "", expires: str | None = None, **scope: str) -> str:
        """Add a request whose part is an adapter of the same or another name; return the ledger's version."""
        payload: dict[str, Any] = dict.fromkeys(("requested_by", "reason", "reply", "note", "replaces", "extends", "subject"))
        payload |= {"records": [], "files": {}, "deletes": [], "expires": expires, "scope": scope}
        moves = self.work / name
        shutil.copytree(self.adapters[adapter or name], moves)
        self.ledger.write("add", name, lambda _: payload, OFFICER, moves)
        return self.ledger.version

    def revoke(self, name: str) -> str:
        """Take a request back; return the ledger's version."""
        self.ledger.revoke(name, OFFICER, why="asked for")
        return self.ledger.version

    def alone(self, *names: str) -> ComposedLM:
        """The model with the parts of these names."""
        return ComposedLM.from_pretrained({name: self.adapters[name] for name in names}, self.base.model)


def make_place(folder: Path, model: Path, names: str = "abcd") -> Place:
    """A ledger without requests, and adapters by the names."""
    folder.mkdir(exist_ok=True)
    retain = folder / "retain.jsonl"
    retain.write_text(json.dumps({"question": "What is two plus three?", "answer": "Five."}) + "\n")
    base = load_base(str(model), device="cpu")
    config = replace(METHODS["t3"], background=BackgroundConfig(background=0))
    options: dict[str, Any] = {"key_file": folder / "key", "config": config, "progress": False}
    ledger = Ledger.create(folder / "ledger", base, [str(retain)], OFFICER, **options)
    return Place(ledger, base, write_adapters(folder, base, names), folder / "ledger")


def write_adapters(folder: Path, base: BaseModel, names: str) -> dict[str, Path]:
    """Adapters whose gates open on some of the prompts."""
    prompts = [base.tokenizer(text).input_ids for text in PROMPTS]
    adapters = {}
    for seed, name in enumerate(names):
        head = GuidanceHead(base.model.config.hidden_size, 4, range(seed, base.model.config.vocab_size, 3))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.A.normal_(std=1.5, generator=generator)
            head.B.normal_(std=1.5, generator=generator)
        gates = gates_for(base.model, prompts, seed=seed)
        options: Mapping[str, Any] = {"temperature": 1.3 + 0.2 * seed, "pooling": "last", "base_fingerprint": base.fingerprint}
        adapters[name] = folder / f"adapter-{name}"
        T3ForCausalLM.from_base(base.model, head, gates=gates, **options).save_pretrained(adapters[name])
    return adapters


def greedy(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    """The greedy answer to a prompt."""
    ids = torch.tensor([tokenizer(prompt).input_ids])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, pad_token_id=2)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
