"""What bfloat16 changes here: truth ratios, the logits of replayed lower layers, and the output layer over a batch of prompts.

python bfloat16.py --peft-adapter FULL --data DATA/forget_perturbed.jsonl
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor

from _print import header, row
from tempertilt.data.batches import pad_batch
from tempertilt.data.examples import ExampleConfig, build_examples
from tempertilt.data.records import Record
from tempertilt.models.base import BaseModel, decoder_layers, load_base
from tempertilt.models.scoring import Scorer
from tempertilt.suites.items import Item
from tempertilt.suites.tofu import load_split, questions_of
from tempertilt.training.replay import Replay, all_logits

PROMPTS, TOKENS = 64, 49


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peft-adapter")
    parser.add_argument("--data", required=True, help="questions with paraphrased_answer and perturbed_answer")
    parser.add_argument("--limit", type=int, default=60)
    args = parser.parse_args()
    header(f"bfloat16 against float32, {args.model} with {args.peft_adapter}")
    items = load_split(args.data, limit=args.limit)
    exact, rounded = (load_base(args.model, peft_adapter=args.peft_adapter, dtype=dtype) for dtype in ("float32", "bfloat16"))
    before, after = (truth_ratios(base, items) for base in (exact, rounded))
    row("truth ratio, float32", before)
    row("truth ratio, bfloat16: distance from it", [abs(a - b) for a, b in zip(before, after)])
    for name, base in (("float32", exact), ("bfloat16", rounded)):
        right, wrong = replay_errors(base, items)
        row(f"{name}: logits of replayed layers, error in eps", right, digits=1)
        row(f"{name}: the same one layer too low", wrong, digits=1)
        for kind, block in (("slice", False), ("block", True)):
            row(f"{name}: output layer on {PROMPTS} last tokens, {kind}", output_seconds(base, block), unit=" s")


def truth_ratios(base: BaseModel, items: list[Item]) -> list[float]:
    """exp(mean nll of the paraphrase - mean of the wrong answers'), one for each question."""
    scores = Scorer(base.model, 1024).score(questions_of(items, base.tokenizer, ExampleConfig()))
    return [math.exp(of[1].nll - sum(score.nll for score in of[2:]) / len(of[2:])) for of in scores]


@torch.no_grad()
def replay_errors(base: BaseModel, items: list[Item]) -> tuple[list[float], list[float]]:
    """Length of the logits' error over their own, in eps: upper half on its own states, and on those of one layer below."""
    records = [Record.from_question(i.question, i.answer, document=i.source, source=i.source) for i in items]
    examples = build_examples(records, base.tokenizer, ExampleConfig())
    layers = decoder_layers(base.model)
    replay = Replay.of(base.model, layers, len(layers) // 2, examples, math.inf)
    assert replay is not None
    low = Replay(layers, replay.first - 1, replay.states, replay.stands[0].returns_tuple)
    errors: tuple[list[float], list[float]] = ([], [])
    for start in range(0, len(examples) - 1, 2):
        pair = list(range(start, start + 2))
        batch = pad_batch([examples[i] for i in pair], base.model.device)
        real = batch.attention_mask.bool()
        whole = all_logits(base.model, batch)[real].float()
        for out, of in zip(errors, (replay, low)):
            with of.batch(pair):
                error = all_logits(base.model, batch)[real].float() - whole
            out.append(float(error.norm() / whole.norm()) / torch.finfo(base.model.dtype).eps)
    return errors


@torch.no_grad()
def output_seconds(base: BaseModel, block: bool) -> list[float]:
    """Seconds of the bare output layer on the last state of each prompt."""
    weight: Tensor = base.model.get_output_embeddings().weight
    states = torch.randn(PROMPTS, TOKENS, weight.shape[1], dtype=weight.dtype)[:, -1:]
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        torch.nn.functional.linear(states.contiguous() if block else states, weight)
        taken.append(time.perf_counter() - started)
    return taken


if __name__ == "__main__":
    main()
