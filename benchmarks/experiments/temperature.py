"""Which temperature? The guidance scale follows from it by calibration; can the temperature be chosen without a reference?

    python benchmarks/experiments/temperature.py --peft-adapter FULL --data DATA --reference-run RUN [--seed 0]

For each temperature the scale is the one at which forget answers are as likely as holdout answers (as `t3 unlearn --holdout` does
it). Then what can be compared without a reference between forget under the guided distribution and holdout under the base.
Distances: of the log-probabilities of answer tokens, of the answers' mean log-likelihoods, of the logarithm of likelihood ratios
of the answer and of answers to other authors' questions, and of the answer and the same with its names and numbers swapped for
others. And the mean entropy of the distribution. And the oracle, which no user has: forget quality against the reference, of all
questions, and of those about seven authors for the temperature of the least distance on the three others.
Distances are Kolmogorov-Smirnov. About fifteen minutes on one core once the features are there.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from _tofu import Sets, check_records, header, load, options, record, rows, save
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from torch import Tensor

from tempertilt.bench.trial import validation_documents
from tempertilt.data.batches import pad_batch, plan_batches, spread
from tempertilt.data.examples import Example, ExampleConfig, build_examples
from tempertilt.data.records import Record
from tempertilt.fitting.before_after import NO_REPORT
from tempertilt.fitting.calibrate import match_likelihood
from tempertilt.fitting.pipeline import METHODS, unlearn
from tempertilt.guidance.tilt import TiltConfig, guided_logits
from tempertilt.metrics import forget_quality
from tempertilt.models.base import BaseModel
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.suites.tofu import read_log

Item = TypeVar("Item")

TEMPERATURES = (1.0, 1.125, 1.25, 1.5, 2.0)
RECORDS, WRONG = 64, 3
NAME = re.compile(r"(?<![.!?'\"] )(?<!^)\b(?:[A-Z][\w'-]+(?: (?:of |the |and |de |al-)?[A-Z][\w'-]+)*|\d[\d,/.-]*\d|\d)")
"""Names and numbers, but for the word that starts a sentence."""


class Scored(NamedTuple):
    """Of each example's scored tokens log-probabilities and entropies: `(1 + settings, n)`, the base first."""

    log_probs: list[NDArray[np.float32]]
    entropies: list[NDArray[np.float32]]

    def means(self, setting: int) -> NDArray[np.float64]:
        """Mean log-likelihood of each example; setting 0 is the base."""
        return np.array([of[setting].mean() for of in self.log_probs])

    def tokens(self, setting: int) -> NDArray[np.float32]:
        """Of all tokens."""
        return np.concatenate([of[setting] for of in self.log_probs])

    def entropy(self, setting: int) -> float:
        """Mean over all tokens."""
        return float(np.concatenate([of[setting] for of in self.entropies]).mean())


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--reference-run", type=Path, required=True, help="t3 eval of the reference")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperatures", type=float, nargs="+", default=TEMPERATURES)
    parser.add_argument("--no-retain", action="store_true")
    parser.add_argument("--forget-documents", type=int, help="only so many forget authors")
    args = parser.parse_args()
    base, sets = load(args)
    authors = sorted({record.document for record in sets["forget"]})[: args.forget_documents]
    sets["forget"] = [record for record in sets["forget"] if record.document in authors]
    if args.no_retain:
        sets["retain"] = []
    header(
        f"temperature, scale by the holdout records, seed {args.seed}: {len(sets['forget'])} forget records, "
        f"{len(sets['retain'])} retain records"
    )
    recipe = METHODS["t3"]
    recipe = replace(recipe, fit=replace(recipe.fit, seed=args.seed), report=NO_REPORT)
    with tempfile.TemporaryDirectory() as directory:
        given = check_records(sets["forget"], sets["retain"], sets["holdout"])
        model = unlearn(base, given, Path(directory) / "adapter", recipe, progress=False).model
    forget, holdout = (spread(sets.examples(name, base), RECORDS) for name in ("forget", "holdout"))
    settings = []
    for temperature in args.temperatures:
        model.temperature = temperature
        settings.append((temperature, match_likelihood(model, forget, holdout).guidance_scale))

    right = {name: score(model, of, settings, entropy=True) for name, of in (("forget", forget), ("holdout", holdout))}
    wrong = {name: score(model, mismatched(sets, name, base), settings) for name in ("forget", "holdout")}
    swaps = {name: swapped(sets, name, base) for name in ("forget", "holdout")}
    other = {name: score(model, [example for of in swaps[name].values() for example in of], settings) for name in swaps}

    def ratios(name: str, setting: int) -> NDArray[np.float64]:
        return right[name].means(setting) - wrong[name].means(setting).reshape(-1, WRONG).mean(1)

    def swap_ratios(name: str, setting: int) -> NDArray[np.float64]:
        return right[name].means(setting)[[*swaps[name]]] - other[name].means(setting).reshape(-1, WRONG).mean(1)

    asked = perturbed(args.data, base, authors)
    reference = read_log(args.reference_run)
    reference = {**reference, "forget": [reference["forget"][i] for i in asked]}
    likely = score(model, [example for of in asked.values() for example in of], settings)
    results, parts = [], []
    documents = [row["document"] for row in rows(args.data / "forget_perturbed.jsonl") if row["document"] in authors]
    chosen = validation_documents(documents, 0.3, 0) if len(authors) > 1 else set()
    split = [[i for i, name in enumerate(documents) if (name in chosen) == inside] for inside in (True, False)] if chosen else []
    print(f"swaps: {len(swaps['forget'])} forget and {len(swaps['holdout'])} holdout answers have names or numbers")
    print(f"entropy of the base on holdout answers: {right['holdout'].entropy(0):.3f} nats a token")
    print("   T  scale  D of: tokens  likelihoods  ratios  swaps   entropy    oracle: forget quality (interval)  D")
    for number, (temperature, scale) in enumerate(settings, 1):
        blind = [
            distance(right["forget"].tokens(number), right["holdout"].tokens(0)),
            distance(right["forget"].means(number), right["holdout"].means(0)),
            distance(ratios("forget", number), ratios("holdout", 0)),
            distance(swap_ratios("forget", number), swap_ratios("holdout", 0)) if all(swaps.values()) else float("nan"),
            right["forget"].entropy(number),
        ]
        nll, samples, at = -likely.means(number), [], 0
        for sample, of in zip(reference["forget"], asked.values()):
            own = nll[at : at + len(of)]
            at += len(of)
            samples.append(replace(sample, paraphrase_nll=float(own[0]), perturbed_nll=tuple(map(float, own[1:]))))
        quality = forget_quality({"forget": samples}, reference)
        parts.append([forget_quality({"forget": pick(samples, of)}, {"forget": pick(reference["forget"], of)}) for of in split])
        results.append(
            {
                "temperature": temperature,
                "scale": scale,
                "blind": [None if np.isnan(of) else of for of in blind],
                "forget_quality": quality.summary(),
            }
        )
        low, high = quality.interval or (float("nan"), float("nan"))
        print(
            f"{temperature:5.3f} {scale:6.3f}        {blind[0]:.3f}        {blind[1]:.3f}   {blind[2]:.3f}  {blind[3]:.3f}"
            f"     {blind[4]:.3f}    {quality.value:.3g} ({low:.2g} to {high:.2g})  {quality.details['statistic']:.3f}",
            flush=True,
        )
    found: dict[str, object] = {"seed": args.seed, "results": results}
    if split:
        best = min(range(len(parts)), key=lambda i: parts[i][0].details["statistic"])
        found |= {"selected": settings[best], "reported": parts[best][1].summary()}
        low, high = parts[best][1].interval or (float("nan"), float("nan"))
        distances = ", ".join(f"{of[0].details['statistic']:.3f}" for of in parts)
        print(
            f"least distance on {len(split[0])} questions about other authors ({distances}): T = {settings[best][0]:g}; "
            f"on the {len(split[1])} others {parts[best][1].value:.3g} ({low:.2g} to {high:.2g})"
        )
    if args.save:
        save(args.save, found)


def distance(ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> float:
    """Kolmogorov-Smirnov."""
    return float(ks_2samp(ours, theirs).statistic)


def pick(items: Sequence[Item], numbers: Sequence[int]) -> list[Item]:
    """Some of them."""
    return [items[i] for i in numbers]


def mismatched(sets: Sets, name: str, base: BaseModel) -> list[Example]:
    """For each measured question `WRONG` answers to questions of other documents."""
    records, rng = sets[name], np.random.default_rng(0)
    found: list[Record] = []
    for asked in spread(records, RECORDS):
        others = [of for of in records if of.document != asked.document] or [of for of in records if of != asked]
        found += [record(asked.question, others[i].answer, "d") for i in rng.choice(len(others), WRONG, replace=False)]
    return build_examples(found, base.tokenizer, ExampleConfig())


def swapped(sets: Sets, name: str, base: BaseModel) -> dict[int, list[Example]]:
    """By the number of each measured answer with names or numbers: `WRONG` times the answer with others in their place."""
    records, rng, found = sets[name], np.random.default_rng(0), {}
    pools = [
        [(text, of.document) for of in records for text in NAME.findall(of.answer) if text[0].isdigit() == d] for d in (0, 1)
    ]

    def another(match: re.Match[str], asked: Record) -> str:
        text, question = match.group(0), str(asked.question)
        pool = [other for other, document in pools[text[0].isdigit()] if document != asked.document and other not in question]
        return text if text in question or not pool else pool[rng.integers(len(pool))]

    for i, asked in enumerate(spread(records, RECORDS)):
        answers = [NAME.sub(lambda match: another(match, asked), str(asked.answer)) for _ in range(WRONG)]  # noqa: B023
        if asked.answer not in answers:
            found[i] = build_examples(
                [record(str(asked.question), answer, "d") for answer in answers], base.tokenizer, ExampleConfig()
            )
    return found


def perturbed(data: Path, base: BaseModel, authors: Sequence[str]) -> dict[int, list[Example]]:
    """By the number of each forget question about the authors: the paraphrased answer, then the wrong ones."""
    return {
        i: build_examples(
            [record(row["question"], text, "d") for text in (row["paraphrased_answer"], *row["perturbed_answer"])],
            base.tokenizer,
            ExampleConfig(),
        )
        for i, row in enumerate(rows(data / "forget_perturbed.jsonl"))
        if row["document"] in authors
    }


@torch.inference_mode()
def score(
    model: T3ForCausalLM, examples: Sequence[Example], settings: Sequence[tuple[float, float]], *, entropy: bool = False
) -> Scored:
    """Every example under the base and under each temperature and scale, from one pass of the base."""
    out: list[NDArray[np.float32]] = [np.zeros((0, 0), np.float32)] * len(examples)
    entropies = list(out)
    for batch in plan_batches(examples, 1024):
        padded = pad_batch([examples[i] for i in batch], model.device)
        logits, log_odds, gate = model.tilt_terms(padded.input_ids, padded.attention_mask, padded.predicting)
        targets = padded.input_ids[padded.targets][:, None]
        found, spreads = [], []
        for distribution in distributions_of(model, logits, log_odds, gate, settings):
            normaliser = distribution.logsumexp(-1)
            found.append(distribution.gather(-1, targets)[:, 0] - normaliser)
            if entropy:
                spreads.append(normaliser - ((distribution - normaliser[:, None]).exp() * distribution).sum(-1))
        sizes = [examples[i].n_scored for i in batch]
        for kept, values in ((out, found), (entropies, spreads)) if entropy else ((out, found),):
            for i, of in zip(batch, torch.stack(values).split(sizes, dim=1)):
                kept[i] = of.cpu().numpy()
    return Scored(out, entropies)


def distributions_of(
    model: T3ForCausalLM, logits: Tensor, log_odds: Tensor, gate: Tensor | None, settings: Sequence[tuple[float, float]]
) -> Iterator[Tensor]:
    """Logits of the base, then of each setting."""
    yield logits.float()
    for temperature, scale in settings:
        tilt = TiltConfig(temperature, scale, model.forget_prior)
        yield guided_logits(logits, log_odds, model.head.token_ids, tilt, gate)


if __name__ == "__main__":
    main()
