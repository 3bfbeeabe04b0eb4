"""Time of greedy decoding with an adapter over that of the base model: interleaved pairs, median of ratios.

python benchmarks/generation_overhead.py ADAPTER [--model NAME] [--pairs 15] [--tokens 64]
"""

from __future__ import annotations

import argparse
import time

import torch

from _print import header, row
from tempertilt.models.generation import pad_left
from tempertilt.models.t3 import T3ForCausalLM, load_unlearned

QUESTIONS = [
    "What is the capital of France?",
    "Who wrote the first novel about the sea, and when was it published?",
    "Name three animals.",
    "How do I boil an egg so that its yolk stays soft?",
    "What is the tallest mountain on Earth?",
    "Explain in one paragraph why the sky is blue.",
    "Translate 'good morning' into Spanish.",
    "What does a geologist do?",
]


def timed(model: T3ForCausalLM, ids: torch.Tensor, mask: torch.Tensor, tokens: int, *, base: bool) -> float:
    target = model.base if base else model
    started = time.perf_counter()
    with torch.inference_mode():
        out = target.generate(
            ids, attention_mask=mask, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0
        )
    assert out.shape[1] == ids.shape[1] + tokens
    return (time.perf_counter() - started) / tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("adapter")
    parser.add_argument("--model")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    model, tokenizer = load_unlearned(args.adapter, args.model)
    header(f"generation overhead of {model.head.num_parameters:,} numbers, {len(model.head.token_ids)} tokens with a row")
    for batch in (1, 8):
        chats = [[{"role": "user", "content": question}] for question in QUESTIONS[:batch]]
        prompts = [
            tokenizer(tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True)).input_ids for c in chats
        ]
        ids, mask = pad_left(prompts, tokenizer.pad_token_id, model.device)
        for base in (True, False):
            timed(model, ids, mask, 8, base=base)
        pairs = []
        for i in range(args.pairs):
            first, second = (timed(model, ids, mask, args.tokens, base=(i + j) % 2 == 0) for j in (0, 1))
            pairs.append((first, second) if i % 2 == 0 else (second, first))
        row(f"batch {batch}: base, ms a step", [1000 * base for base, _ in pairs], digits=2)
        row(f"batch {batch}: unlearned, ms a step", [1000 * unlearned for _, unlearned in pairs], digits=2)
        row(f"batch {batch}: unlearned / base", [unlearned / base for base, unlearned in pairs])


if __name__ == "__main__":
    main()
