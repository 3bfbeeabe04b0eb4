"""Scoring many answers to each question: the engine against (question, answer) pairs in padded batches.

    python benchmarks/scoring_speed.py --model smollm2 --peft-adapter DIR --data forget_perturbed.jsonl [--repeats 5]

The pairs are scored 16 at a time in the order of the file, each batch padded to its longest, logits at all positions, float32
log-probabilities of the labels. The two ways take turns; the largest difference between their figures is printed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from _print import header, row, save
from tempertilt.data.examples import ExampleConfig
from tempertilt.models.base import load_base
from tempertilt.models.scoring import Question, Scorer
from tempertilt.suites.tofu import load_split, questions_of


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peft-adapter")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()

    base = load_base(args.model, peft_adapter=args.peft_adapter)
    questions = questions_of(load_split(args.data, limit=args.limit), base.tokenizer, ExampleConfig(), standardise=True)
    answers = sum(len(question.answers) for question in questions)
    header(f"score {len(questions)} questions, {answers} answers, {args.model} with {args.peft_adapter}")
    times: dict[str, list[float]] = {"pairs": [], "engine": []}
    worst = 0.0
    for _ in range(args.repeats):
        started = time.perf_counter()
        pairs = score_pairs(base.model, questions)
        times["pairs"].append(time.perf_counter() - started)
        started = time.perf_counter()
        scores = Scorer(base.model, args.batch_tokens).score(questions)
        times["engine"].append(time.perf_counter() - started)
        ours = [score.nll for of in scores for score in of]
        worst = max(worst, *(abs(a - b) for a, b in zip(pairs, ours)))
    ratios = [pairs / engine for pairs, engine in zip(times["pairs"], times["engine"])]
    row("pairs, samples/s", [answers / seconds for seconds in times["pairs"]], digits=2)
    row("engine, samples/s", [answers / seconds for seconds in times["engine"]], digits=2)
    row("engine / pairs", ratios)
    print(f"largest difference of a mean log-likelihood: {worst:.1e} nats a token")
    if args.save:
        save(args.save, {"answers": answers, "seconds": times, "ratios": ratios, "worst_difference": worst})


@torch.inference_mode()
def score_pairs(model: torch.nn.Module, questions: list[Question], size: int = 16) -> list[float]:
    """Mean negative log-likelihoods, one pair a row."""
    pairs = [(question.prompt, answer) for question in questions for answer in question.answers]
    out = []
    for start in range(0, len(pairs), size):
        batch = pairs[start : start + size]
        width = max(len(prompt) + len(answer) for prompt, answer in batch)
        ids, mask = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width, dtype=torch.long)
        labels = torch.full((len(batch), width), -100)
        for i, (prompt, answer) in enumerate(batch):
            length = len(prompt) + len(answer)
            ids[i, :length] = torch.tensor(prompt + answer)
            labels[i, len(prompt) : length] = torch.tensor(answer)
            mask[i, :length] = 1
        distribution = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
        log_probs = distribution.gather(-1, labels[:, 1:, None].clamp(min=0)).squeeze(-1)
        scored = labels[:, 1:] != -100
        out += (-(log_probs * scored).sum(-1) / scored.sum(-1)).tolist()
    return out


if __name__ == "__main__":
    main()
