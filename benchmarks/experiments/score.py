"""What tells, without a reference, how likely a token would be to a model that never saw the record?

    python benchmarks/experiments/score.py --peft-adapter FULL --retain FILE ... (--holdout FILE ... | --stand-ins)
      [--columns field=NAME,...] [--records 40] [--save FILE]

The base never saw the holdout records, so its own log-probabilities there are the truth that the score of the estimate
(`tempertilt.fitting.score`) stands for. They are predicted by linear regression from several sets of facts, fitted on half of
the holdout documents and tried on the other half, both ways. With --stand-ins, retain records under other names and with other
values take the place of holdout records. A record that names no document is one by itself. Printed: the
correlation of the score with the truth, and after the quantile map the mean absolute error in nats, and the share of tokens that
are taken to have more than a half and have less than exp(-2). No forget record and no reference is used. A minute on one core.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for _print, which all benchmarks share
from _print import header, save
from tempertilt.data.examples import ExampleConfig, answer_ids, build_examples
from tempertilt.data.records import load_all
from tempertilt.data.stand_ins import stand_ins
from tempertilt.fitting.fit_gate import GateConfig
from tempertilt.fitting.neighbours import Neighbourhood, contexts_of, documents_of
from tempertilt.fitting.passes import Likelihoods, answer_states, likelihoods
from tempertilt.fitting.score import NGrams, linear_fit, map_quantiles, token_facts
from tempertilt.models.base import load_base

SURE, UNLIKELY = np.log(0.5), -2.0


def predictions(facts: Tensor, truth: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Scores `(N,)`, and log-probabilities `(N,)` by the quantile map, each by a fit on the other half."""
    scores, mapped = torch.zeros_like(truth), torch.zeros_like(truth)
    for fitted in (half, ~half):
        scores[~fitted], known = linear_fit(facts[fitted], truth[fitted], facts[~fitted], facts[fitted])
        mapped[~fitted] = map_quantiles(scores[~fitted], known, truth[fitted])
    return scores, mapped


def main() -> None:
    """Read, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peft-adapter", required=True, help="makes the model know the retain records")
    parser.add_argument("--retain", nargs="+", required=True)
    tried = parser.add_mutually_exclusive_group(required=True)
    tried.add_argument("--holdout", nargs="+", help="records that it never saw")
    tried.add_argument("--stand-ins", action="store_true", help="made of the retain records")
    parser.add_argument("--columns", default="", help="as of t3 unlearn")
    parser.add_argument("--records", type=int, default=40, help="holdout records or stand-ins, at most, drawn at random")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    columns_of = dict(pair.split("=") for pair in args.columns.split(",") if pair)
    base = load_base(args.model, peft_adapter=args.peft_adapter, device="cpu", dtype="float32")
    contrast = load_base(args.model, device="cpu", dtype="float32")
    known = load_all(args.retain, columns=columns_of)
    if args.stand_ins:
        records = stand_ins(known, args.records)
    else:
        every = load_all(args.holdout, columns=columns_of)
        records = random.Random(0).sample(every, min(args.records, len(every)))
    unseen, retain = (build_examples(part, base.tokenizer, ExampleConfig()) for part in (records, known))
    layer = GateConfig().layer(base.model.config.num_hidden_layers)
    retained, found = (answer_states(base.model, part, layer=layer) for part in (retain, unseen))
    assert retained.lower is not None
    hood = Neighbourhood(contexts_of(retain, retained.lower))
    truth = likelihoods(base.model, found)
    other = likelihoods(contrast.model, answer_states(contrast.model, unseen))
    size = 1 + max(int(example.input_ids.max()) for example in (*unseen, *retain))
    ngrams = NGrams([answer_ids(example).tolist() for example in retain], size)

    def facts(neighbours: Neighbourhood | None, likelihood: Likelihoods | None) -> Tensor:
        return token_facts(unseen, ngrams, found, neighbours, likelihood).values

    columns = {
        "contrast model": torch.stack([torch.ones(len(found.tokens)).double(), other.log_probs.double()], 1),
        "n-grams, repetition": facts(None, None),
        "neighbours, n-grams": facts(hood, None),
        "contrast model, n-grams": facts(None, other),
        "all": facts(hood, other),
    }
    documents = documents_of(unseen).tolist()
    numbers = {name: i for i, name in enumerate(dict.fromkeys(documents))}
    half = torch.tensor([numbers[name] % 2 == 0 for name in documents])
    header(f"score: {len(unseen)} holdout records, {len(documents)} tokens, {len(numbers)} documents")
    print(f"{'facts':<28}{'correlation':>12}{'error, nats':>13}{'wrongly sure':>14}")
    figures = {}
    for name, known_facts in columns.items():
        scores, mapped = predictions(known_facts, truth.log_probs, half)
        correlation = float(np.corrcoef(scores, truth.log_probs)[0, 1])
        error = float((mapped - truth.log_probs).abs().mean())
        wrong = float(((mapped > SURE) & (truth.log_probs < UNLIKELY)).double().mean())
        figures[name] = {"correlation": correlation, "error": error, "wrongly_sure": wrong}
        print(f"{name:<28}{correlation:>12.2f}{error:>13.2f}{wrong:>14.3f}")
    if args.save:
        save(args.save, {"tokens": len(documents), "documents": len(numbers), "figures": figures})


if __name__ == "__main__":
    main()
