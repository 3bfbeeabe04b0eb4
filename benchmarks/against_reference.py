"""An adapter against a reference that never saw the forget records: next-token distributions, truth ratios, greedy answers.

    python benchmarks/against_reference.py ADAPTER --data-dir TOFU --reference-peft-adapter DIR [--peft-adapter DIR] [--limit N]

Prints KL(reference || unlearned) in nats a token and the share of tokens with the same most likely token at the forget answers;
the KS distance of the tokens' log-probabilities and of the standardised ones (Min-K++); D and p of the truth ratios; of greedy
answers the share that end by themselves, their perplexity under the reference beside that of its own, and the records whose facts
they give away.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from tempertilt.data.batches import Batch, pad_batch, plan_batches, spread
from tempertilt.data.examples import Example, ExampleConfig, build_examples, encode_prompt
from tempertilt.data.facts import facts_of, given_away
from tempertilt.data.records import Record, load_records
from tempertilt.environment import environment
from tempertilt.fitting.before_after import greedy_token_ids
from tempertilt.models.base import load_base
from tempertilt.models.t3 import load_unlearned

ANSWERS, NEW = 60, 128
Logits = Callable[[Batch], Tensor]


def of_tokens(logits: Logits, examples: list[Example]) -> list[Tensor]:
    """Mean log-probability of each example's answer, from whole passes, as `(1,)`."""
    out: dict[int, Tensor] = {}
    for numbers in plan_batches(examples, 1024):
        some = [examples[i] for i in numbers]
        padded = pad_batch(some, "cpu")
        own = logits(padded).log_softmax(-1).gather(-1, padded.input_ids[padded.targets][:, None])[:, 0]
        out |= dict(zip(numbers, (part.mean() for part in own.split([example.n_scored for example in some]))))
    return [out[i] for i in range(len(examples))]


def distributions(ours: Logits, theirs: Logits, examples: list[Example]) -> dict[str, float]:
    """The distances of next-token distributions."""
    columns: list[tuple[Tensor, ...]] = []
    for numbers in plan_batches(examples, 1024):
        padded = pad_batch([examples[i] for i in numbers], "cpu")
        both = [logits(padded).log_softmax(-1) for logits in (ours, theirs)]
        rows = [(both[1].exp() * (both[1] - both[0])).sum(-1), (both[0].argmax(-1) == both[1].argmax(-1)).float()]
        for log_probs in both:
            own = log_probs.gather(-1, padded.input_ids[padded.targets][:, None])[:, 0]
            mean = (log_probs.exp() * log_probs).sum(-1)
            deviation = ((log_probs.exp() * log_probs**2).sum(-1) - mean**2).clamp(min=1e-6).sqrt()
            rows += [own, (own - mean) / deviation]
        columns.append(tuple(rows))
    kl, same, tokens, standard, their_tokens, their_standard = (torch.cat(column).double().numpy() for column in zip(*columns))
    return {
        "tokens": len(kl),
        "kl": kl.mean(),
        "same_top": same.mean(),
        "ks_log_probs": ks_2samp(tokens, their_tokens).statistic,
        "ks_standardised": ks_2samp(standard, their_standard).statistic,
    }


def truth_ratios(logits: Logits, rows: list[dict[str, Any]], tokenizer: Any) -> np.ndarray:
    """`(n,)`: geometric mean probability of the wrong answers over that of the paraphrased one."""
    every = [[row["paraphrased_answer"], *row["perturbed_answer"]] for row in rows]
    records = [
        Record.from_question(row["question"], answer, document="", source="") for row, some in zip(rows, every) for answer in some
    ]
    values = iter(of_tokens(logits, build_examples(records, tokenizer, ExampleConfig())))
    parts = [[float(next(values)) for _ in some] for some in every]
    return np.array([math.exp(np.mean(wrong) - right) for right, *wrong in parts])


def main() -> None:
    """Load both models, print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peft-adapter")
    parser.add_argument("--reference-peft-adapter", required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="forget records")
    args = parser.parse_args()
    model, tokenizer = load_unlearned(args.adapter, args.model, peft_adapter=args.peft_adapter, device="cpu", dtype="float32")
    reference = load_base(args.model, peft_adapter=args.reference_peft_adapter, device="cpu", dtype="float32").model
    records = load_records(str(args.data_dir / "forget.jsonl"))[: args.limit]
    rows = [json.loads(line) for line in (args.data_dir / "forget_perturbed.jsonl").read_text().splitlines()][: args.limit]

    def ours(batch: Batch) -> Tensor:
        return model.paired_logits(batch.input_ids, batch.attention_mask, batch.predicting)[1].float()

    def theirs(batch: Batch) -> Tensor:
        logits = reference(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        return logits[batch.predicting].float()  # type: ignore[no-any-return]

    with torch.inference_mode():
        figures: dict[str, Any] = distributions(ours, theirs, build_examples(records, tokenizer, ExampleConfig()))
        ratios = [truth_ratios(logits, rows, tokenizer) for logits in (ours, theirs)]
        test = ks_2samp(*ratios)
        figures |= {"questions": len(rows), "ks_distance": test.statistic, "forget_quality": test.pvalue}
        some = spread(records, ANSWERS)
        prompts = [encode_prompt(record, tokenizer, ExampleConfig()) for record in some]
        for name, spoken in (("unlearned", model), ("reference", reference)):
            answers = greedy_token_ids(spoken, tokenizer, prompts, max_new_tokens=NEW)
            total = 0.0
            for prompt, ids in zip(prompts, answers):
                log_probs = reference(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                total += float(log_probs.gather(-1, torch.tensor(ids)[:, None]).sum())
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
            figures[name] = {
                "answers": len(answers),
                "end_by_themselves": np.mean([len(ids) < NEW for ids in answers]),
                "perplexity_under_reference": math.exp(-total / sum(map(len, answers))),
                "give_facts_away": sum(bool(given_away(facts_of(record), text)) for record, text in zip(some, texts)),
            }
    print(json.dumps(figures | {"environment": environment()}, indent=1, default=float))


if __name__ == "__main__":
    main()
