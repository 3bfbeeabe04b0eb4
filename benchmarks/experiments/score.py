"""What tells, without a reference, how likely a token would be to a model that never saw the record?

    python benchmarks/experiments/score.py --peft-adapter FULL --holdout FILE ... --retain FILE ... [--records 40] [--save FILE]

The base never saw the holdout records, so its own log-probabilities there are the truth that the score of the estimate
(`tempertilt.fitting.estimate`) stands for. They are predicted by linear regression from several sets of facts, fitted on half of
the holdout documents and tried on the other half, both ways. A record that names no document is one by itself. Printed: the
correlation of the score with the truth, and after the quantile map the mean absolute error in nats, and the share of tokens that
are taken to have more than a half and have less than exp(-2). No forget record and no reference is used. A minute on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for _print, which all benchmarks share
from _print import header, save
from tempertilt.data.batches import spread
from tempertilt.data.examples import ExampleConfig, build_examples
from tempertilt.data.records import load_all
from tempertilt.fitting import estimate
from tempertilt.models.base import load_base

SURE, UNLIKELY = np.log(0.5), -2.0


def predictions(facts: Tensor, truth: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Scores `(N,)`, and log-probabilities `(N,)` by the quantile map, each by a fit on the other half."""
    scores, mapped = torch.zeros_like(truth), torch.zeros_like(truth)
    for fitted in (half, ~half):
        scores[~fitted], known = estimate._scores(facts[~fitted], facts[fitted], truth[fitted])
        mapped[~fitted] = estimate.map_quantiles(scores[~fitted], known, truth[fitted])
    return scores, mapped


def main() -> None:
    """Read, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peft-adapter", required=True, help="makes the model know the retain records")
    parser.add_argument("--holdout", nargs="+", required=True, help="records that it never saw")
    parser.add_argument("--retain", nargs="+", required=True)
    parser.add_argument("--records", type=int, default=None, help="holdout records, at most")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    base = load_base(args.model, peft_adapter=args.peft_adapter, device="cpu", dtype="float32")
    contrast = load_base(args.model, device="cpu", dtype="float32")
    unseen = load_all(args.holdout)
    unseen, retain = (
        build_examples(records, base.tokenizer, ExampleConfig())
        for records in (spread(unseen, args.records or len(unseen)), load_all(args.retain))
    )
    truth, other = (estimate._likelihoods(one.model, estimate.answer_states(one.model, unseen)) for one in (base, contrast))
    _, ngrams = estimate._all_facts(unseen, unseen, retain)
    every = estimate._with_contrast(ngrams, other)
    columns: dict[str, Any] = {
        "contrast model": torch.cat([torch.ones(len(every), 1), other.log_probs.double()[:, None]], 1),
        "n-grams, repetition": ngrams,
        "both": every[:, :-2],
        "both, entropy, the surer": every,
    }
    documents = [example.document for example in unseen for _ in range(example.n_scored)]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(documents))}
    half = torch.tensor([numbers[name] % 2 == 0 for name in documents])
    header(f"score: {len(unseen)} holdout records, {len(documents)} tokens, {len(numbers)} documents")
    print(f"{'facts':<28}{'correlation':>12}{'error, nats':>13}{'wrongly sure':>14}")
    figures = {}
    for name, facts in columns.items():
        scores, mapped = predictions(facts, truth.log_probs, half)
        correlation = float(np.corrcoef(scores, truth.log_probs)[0, 1])
        error = float((mapped - truth.log_probs).abs().mean())
        wrong = float(((mapped > SURE) & (truth.log_probs < UNLIKELY)).double().mean())
        figures[name] = {"correlation": correlation, "error": error, "wrongly_sure": wrong}
        print(f"{name:<28}{correlation:>12.2f}{error:>13.2f}{wrong:>14.3f}")
    if args.save:
        save(args.save, {"tokens": len(documents), "documents": len(numbers), "figures": figures})


if __name__ == "__main__":
    main()
