"""Can what was forgotten be had back by asking often, or in other words?

    python benchmarks/experiments/recall.py --peft-adapter FULL --reference REFERENCE --data DATA --adapter DIR [--questions 50]

For forget questions, and for their paraphrases: 16 answers sampled at temperature 1 from the model before, from the unlearned
model and from one that never saw the records. The best of 16 by ROUGE-L recall of the true answer, and how many of all are the
true answer word for word; greedy likewise. Intervals: percentiles of bootstrap means over questions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from _tofu import Sets, header, options, save

from tempertilt.data.batches import spread
from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.metrics.result import bootstrap
from tempertilt.metrics.rouge import rouge_scores
from tempertilt.models.base import load_base
from tempertilt.models.generation import generate_ids
from tempertilt.models.t3 import T3ForCausalLM

DRAWS, TOKENS, BATCH = 16, 96, 8


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--reference", required=True, help="PEFT adapter of the model that never saw the forget records")
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--questions", type=int, default=50)
    args = parser.parse_args()
    header(f"best of {DRAWS} sampled answers to {args.questions} forget questions")
    sets, base = Sets(args.data), load_base(args.model, peft_adapter=args.peft_adapter)
    unlearned = T3ForCausalLM.from_pretrained(args.adapter, base_model=base.model)
    never = load_base(args.model, peft_adapter=args.reference)
    asked = spread(list(zip(sets["forget"], sets["forget paraphrased"])), args.questions)
    results: dict[str, Any] = {}
    print(f"{'questions':<14} {'model':<12} best of {DRAWS}, ROUGE-L recall   mean of all   verbatim   greedy: recall, verbatim")
    for kind in (0, 1):
        prompts = [encode_question(pair[kind].question, base.tokenizer, ExampleConfig()) for pair in asked]
        truths = [pair[kind].answer for pair in asked]
        for name, model in (("before", base.model), ("unlearned", unlearned), ("never saw", never.model)):
            drawn, greedy = answers(model, base.tokenizer, prompts, DRAWS), answers(model, base.tokenizer, prompts, 0)
            recalls = [[rouge_scores(truth, text)["rougeL_recall"] for text in of] for truth, of in zip(truths, drawn)]
            best = np.array([max(of) for of in recalls])
            low, high = bootstrap(np.mean, best)
            verbatim = sum(text.strip() == truth.strip() for truth, of in zip(truths, drawn) for text in of)
            once = [rouge_scores(truth, of[0])["rougeL_recall"] for truth, of in zip(truths, greedy)]
            told = sum(of[0].strip() == truth.strip() for truth, of in zip(truths, greedy))
            title = ("as trained", "paraphrased")[kind]
            results[f"{title}, {name}"] = {
                "best": float(best.mean()), "interval": [low, high], "mean": float(np.mean(recalls)),
                "verbatim": verbatim, "greedy": float(np.mean(once)), "greedy_verbatim": told,
            }  # fmt: skip
            print(
                f"{title:<14} {name:<12} {best.mean():.3f} ({low:.3f} to {high:.3f})          {np.mean(recalls):.3f}         "
                f"{verbatim:>4} of {len(truths) * DRAWS}       {np.mean(once):.3f}, {told} of {len(truths)}",
                flush=True,
            )
    if args.save:
        save(args.save, {"questions": len(asked), "draws": DRAWS, "results": results})


def answers(model: Any, tokenizer: Any, prompts: list[list[int]], draws: int) -> list[list[str]]:
    """Texts of the answers to each prompt."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out: list[list[str]] = [[] for _ in prompts]
    torch.manual_seed(0)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        found = generate_ids(model, tokenizer, [prompts[i] for i in rows], max_new_tokens=TOKENS, draws=draws)
        for i, of in zip(rows, found):
            out[i] = tokenizer.batch_decode(of, skip_special_tokens=True)
    return out


if __name__ == "__main__":
    main()
