"""What an unlearned model changes in text that is not to change.

    python benchmarks/experiments/side_effects.py --peft-adapter FULL --data DATA [--folds 5] [--forget-documents N] [--no-retain]

The adapter is made without a fifth of the retain authors, `folds` times, and judged on those; and on real authors, world facts
and general chat, none of which it was made of. For every prompt: the base's greedy answer, the total variation between the two
distributions at each of its tokens, whether the unlearned model's greedy answer is the same, whether the gate opened; then one
sampled answer of each model with the same seed, and its perplexity under the base.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _tofu import check_records, header, load, options, save, unseen

from tempertilt.data.batches import pad_batch, plan_batches
from tempertilt.data.examples import Example, ExampleConfig, encode_prompt
from tempertilt.data.records import Record
from tempertilt.fitting.before_after import NO_REPORT
from tempertilt.fitting.pipeline import METHODS, unlearn
from tempertilt.models.base import BaseModel
from tempertilt.models.generation import generate_ids
from tempertilt.models.t3 import T3ForCausalLM

TOKENS, BATCH = 64, 32


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--folds", type=int, default=5, help="how many of the five parts are left out in turn")
    parser.add_argument("--forget-documents", type=int, help="only so many forget authors")
    parser.add_argument("--no-retain", action="store_true")
    parser.add_argument("--method", choices=tuple(METHODS), default="t3")
    args = parser.parse_args()
    base, sets = load(args)
    header(f"side effects of {args.method}, retain {'none' if args.no_retain else 'with a fifth left out'}")
    recipe = replace(METHODS[args.method], report=NO_REPORT)
    forget = sets["forget"]
    if args.forget_documents:
        chosen = sorted({record.document for record in forget})[: args.forget_documents]
        forget = [record for record in forget if record.document in chosen]
    documents = [record.document for record in sets["retain"]]
    found: dict[str, list[dict[str, float]]] = {}
    for fold, part in enumerate(unseen(documents)[: args.folds]):
        kept = [] if args.no_retain else [record for record in sets["retain"] if record.document not in part]
        with tempfile.TemporaryDirectory() as directory:
            given = check_records(forget, kept, sets["holdout"])
            model = unlearn(base, given, Path(directory) / "adapter", recipe, progress=False).model
        judged = {"retain, authors left out": [record for record in sets["retain"] if record.document in part]}
        if fold == 0:
            judged |= {name: sets[name] for name in ("real authors", "world facts", "chat")}
        for name, records in judged.items():
            found.setdefault(name, []).extend(judge(model, base, records))
    print(f"{'set':<26}   n  mean TV   greedy unchanged  gate opened  perplexity of samples: base  unlearned  ratio")
    results = {}
    for name, of in found.items():
        mean = {key: float(np.mean([item[key] for item in of])) for key in ("tv", "same", "opened")}
        perplexity = [math.exp(sum(i[f"nll_{k}"] for i in of) / sum(i[f"n_{k}"] for i in of)) for k in ("base", "unlearned")]
        results[name] = {**mean, "n": len(of), "perplexity": perplexity}
        print(
            f"{name:<26} {len(of):>3}  {mean['tv']:.4f}    {mean['same']:.3f}             {mean['opened']:.3f}        "
            f"                       {perplexity[0]:.2f}  {perplexity[1]:.2f}       {perplexity[1] / perplexity[0]:.3f}"
        )
    if args.save:
        save(args.save, {"results": results})


def judge(model: T3ForCausalLM, base: BaseModel, records: Sequence[Record]) -> list[dict[str, float]]:
    """Total variation, greedy agreement, gate value and perplexities of each record."""
    prompts = [encode_prompt(record, base.tokenizer, ExampleConfig()) for record in records]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out: list[dict[str, float]] = [{} for _ in prompts]
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        asked = [prompts[i] for i in rows]
        greedy = [row for [row] in generate_ids(model.base, base.tokenizer, asked, max_new_tokens=TOKENS)]
        for i, of in zip(rows, compare(model, asked, greedy)):
            out[i] |= {"tv": of["tv"], "same": of["same"], "opened": of["opened"]}
        for name, sampled in (("base", model.base), ("unlearned", model)):
            torch.manual_seed(start)
            drawn = [row for [row] in generate_ids(sampled, base.tokenizer, asked, max_new_tokens=TOKENS, draws=1)]
            for i, of, row in zip(rows, compare(model, asked, drawn), drawn):
                out[i] |= {f"nll_{name}": of["nll"], f"n_{name}": len(row)}
    return out


@torch.inference_mode()
def compare(model: T3ForCausalLM, prompts: list[list[int]], answers: list[list[int]]) -> list[dict[str, Any]]:
    """Of each answer: mean total variation, whether the greedy choices agree, gate value, base negative log-likelihood."""
    examples = [
        Example(np.array([*p, *a], np.int32), np.arange(len(p) + len(a)) >= len(p), "d", "s", i)
        for i, (p, a) in enumerate(zip(prompts, answers))
    ]
    out: list[dict[str, Any]] = [{} for _ in examples]
    for batch in plan_batches(examples, 2048):
        padded = pad_batch([examples[i] for i in batch], model.device)
        before, after = model.paired_logits(padded.input_ids, padded.attention_mask, padded.predicting)
        distributions = before.float().log_softmax(-1), after.float().log_softmax(-1)
        variation = (distributions[0].exp() - distributions[1].exp()).abs().sum(-1) / 2
        agree = before.argmax(-1) == after.argmax(-1)
        nll = -distributions[0].gather(-1, padded.input_ids[padded.targets][:, None])[:, 0]
        sizes = [len(answers[i]) for i in batch]
        for i, tv, same, lost in zip(batch, variation.split(sizes), agree.split(sizes), nll.split(sizes)):
            out[i] = {"tv": float(tv.mean()), "same": bool(same.all()), "opened": bool(tv.max() > 0), "nll": float(lost.sum())}
    return out


if __name__ == "__main__":
    main()
