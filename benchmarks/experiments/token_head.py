"""Does the token head generalise, and does anything make it?

    python benchmarks/experiments/token_head.py --peft-adapter FULL --data DATA [--save FILE]

Heads that score every answer token, each made without a fifth of the retain authors, five times (the last rows without any), and
judged on tokens that they were not made of: answers about the authors left out, paraphrased answers to paraphrased forget
questions, real authors, world facts. About twenty minutes on one core.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from _tofu import header, load, options, save, states, unseen
from scipy.optimize import minimize_scalar
from scipy.signal import lfilter
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from tempertilt.data.examples import ExampleConfig
from tempertilt.fitting.background import BackgroundConfig, background_examples

LAYERS = (6, 15, 30)
NAMES = ("forget", "forget paraphrased", "retain", "real authors", "world facts")
EPOCHS, HALF, PATIENCE = 100, 16, 10


class Text(NamedTuple):
    """One record: states `(T, d)` float16 by layer, ids `(T,)`, which tokens are scored `(T,)`, document, pooled states."""

    states: dict[int, Tensor]
    ids: Tensor
    scored: Tensor
    document: str
    pooled: Tensor = torch.zeros(0)


@dataclass(frozen=True)
class Variant:
    """How a head is made; one thing at a time differs from the first."""

    title: str
    rank: int = 20
    weight_decay: float = 0.01
    dropout: float = 0.0
    smoothing: float = 0.0
    clip: float = 0.0
    early_stopping: bool = False
    pooling: str = "last"
    whiten: bool = False
    layers: Sequence[int] = field(default=(30,))
    shared: bool = False
    hard: bool = False
    retain: bool = True
    background: bool = True
    prior: float = 0.0  # share of forget text in the background; above 0: non-negative positive-unlabelled loss


VARIANTS = (
    Variant("last state, r = 20"),
    Variant("running mean (the paper)", pooling="mean"),
    Variant("exponential mean, 0.5", pooling="0.5"),
    Variant("exponential mean, 0.9", pooling="0.9"),
    Variant("attention, one learned query", pooling="attention"),
    Variant("r = 5", rank=5),
    Variant("r = 64", rank=64),
    Variant("weight decay 1", weight_decay=1.0),
    Variant("dropout 0.5", dropout=0.5),
    Variant("label smoothing 0.1", smoothing=0.1),
    Variant("log-odds clipped to 4", clip=4.0),
    Variant("early stopping on held-out documents", early_stopping=True),
    Variant("states of unit variance", whiten=True),
    Variant("after 15 layers", layers=(15,)),
    Variant("after 6, 15 and 30 layers", layers=(6, 15, 30)),
    Variant("B from the output embedding", shared=True),
    Variant("hard negatives", hard=True),
    Variant("no background text", background=False),
    Variant("no retain records", retain=False),
    Variant("no retain records, prior 0.05", retain=False, prior=0.05),
    Variant("no retain records, prior 0.3", retain=False, prior=0.3),
)


class Head(nn.Module):
    """`l(v) = b_v . A^T pool(x)` at the scored tokens of whole texts."""

    def __init__(self, variant: Variant, width: int, tokens: Tensor, embedding: Tensor, seed: int) -> None:
        super().__init__()
        self.variant, self.tokens, self.embedding = variant, tokens, embedding
        generator = torch.Generator().manual_seed(seed)
        self.A = nn.Parameter(torch.randn(width, variant.rank, generator=generator) / width**0.5)
        self.B = nn.Parameter(torch.zeros(embedding.shape[1] if variant.shared else len(tokens), variant.rank))
        self.query = nn.Parameter(torch.zeros(width))
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
        """Log-odds of every scored token, and whether the head has a row for it."""
        attention = self.variant.pooling == "attention"
        x = torch.cat([text.pooled for text in texts])
        x = F.dropout((x - self.shift) * self.scale, self.variant.dropout, self.training)
        u = self._attended(x, x @ self.A, texts) if attention else x @ self.A
        targets = torch.cat([text.ids[text.scored] for text in texts])
        rows = torch.searchsorted(self.tokens, targets).clamp(max=len(self.tokens) - 1)
        known = self.tokens[rows] == targets
        b = self.embedding[targets] @ self.B if self.variant.shared else self.B[rows]
        log_odds = (u * b).sum(-1) * known
        clip = self.variant.clip
        return clip * torch.tanh(log_odds / clip) if clip else log_odds, known

    def _attended(self, x: Tensor, u: Tensor, texts: Sequence[Text]) -> Tensor:
        weights, sizes = (x @ self.query).clamp(-20, 20).exp()[:, None], [len(text.pooled) for text in texts]
        parts = zip((u * weights).split(sizes), weights.split(sizes), texts)
        return torch.cat([(of.cumsum(0) / weight.cumsum(0))[:-1][text.scored[1:]] for of, weight, text in parts])


def pooled(text: Text, variant: Variant) -> Text:
    """The text with the pooled states `(n, d)` that predict its scored tokens; for attention those of all tokens."""
    x = torch.cat([text.states[layer].float() for layer in variant.layers], 1)
    if variant.pooling == "attention":
        return text._replace(pooled=x)
    if variant.pooling == "mean":
        x = x.cumsum(0) / torch.arange(1, len(x) + 1)[:, None]
    elif variant.pooling != "last":
        decay = float(variant.pooling)
        x = torch.from_numpy(lfilter([1.0], [1.0, -decay], x.numpy(), axis=0)).float()
        x = x * ((1 - decay) / (1 - decay ** torch.arange(1.0, len(x) + 1)))[:, None]
    return text._replace(pooled=x[:-1][text.scored[1:]])


def endless(count: int, rng: np.random.Generator) -> Iterator[int]:
    """Numbers below `count` in random order, again and again."""
    while True:
        yield from rng.permutation(count).tolist()


def fit(variant: Variant, forget: list[Text], kept: list[Text], embedding: Tensor, seed: int = 0) -> Head:
    """A head by AdamW, learning rate 0.01, classes of equal weight."""
    if variant.early_stopping:
        best = stopping_epoch(variant, forget, kept, embedding, seed)
        return train(variant, forget, kept, embedding, seed, best)[0]
    return train(variant, forget, kept, embedding, seed, EPOCHS)[0]


def stopping_epoch(variant: Variant, forget: list[Text], kept: list[Text], embedding: Tensor, seed: int) -> int:
    """The epoch of the lowest loss on a fifth of the documents of each class, of a head that was made without them."""
    inside, outside = [], []
    for texts in (forget, kept):
        part = unseen([text.document for text in texts], seed=seed + 1)[0]
        inside.append([text for text in texts if text.document not in part])
        outside.append([text for text in texts if text.document in part])
    losses = train(variant, *inside, embedding, seed, EPOCHS, outside)[1]
    return int(np.argmin(losses)) + 1


def train(
    variant: Variant,
    forget: list[Text],
    kept: list[Text],
    embedding: Tensor,
    seed: int,
    epochs: int,
    watched: list[list[Text]] | None = None,
) -> tuple[Head, list[float]]:
    """The head after so many epochs of the forget records, and the watched loss after each."""
    torch.manual_seed(seed)
    tokens = torch.cat([text.ids[text.scored] for text in (*forget, *kept)]).unique()
    head, rng = Head(variant, forget[0].pooled.shape[1], tokens, embedding, seed), np.random.default_rng(seed)
    if variant.whiten:
        rows = torch.cat([text.pooled for text in (*forget, *kept)])
        head.shift, head.scale = rows.mean(0), 1 / (rows.std(0) + 1e-6)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=variant.weight_decay, fused=True)
    draws, losses = endless(len(kept), rng), []
    for _ in range(epochs):
        head.train()
        order = rng.permutation(len(forget))
        for start in range(0, len(order), HALF):
            chosen = order[start : start + HALF]
            optimizer.zero_grad(set_to_none=True)
            on_forget = head([forget[i] for i in chosen])[0]
            pool = len(chosen) * (4 if variant.hard else 1)
            on_kept = head([kept[next(draws)] for _ in range(pool)])[0]
            loss_of(variant, on_forget, on_kept).backward()
            optimizer.step()
        if watched is not None:
            losses.append(float(balanced(*(log_odds(head, texts)[0] for texts in watched))))
            if len(losses) - int(np.argmin(losses)) > PATIENCE:
                break
    return head.eval(), losses


def loss_of(variant: Variant, forget: Tensor, kept: Tensor) -> Tensor:
    """Balanced cross-entropy; with label smoothing, on the hardest quarter of kept tokens, or for unlabelled background."""
    s = variant.smoothing
    is_forget = (1 - s) * F.softplus(forget).mean() + s * F.softplus(-forget).mean()
    each = (1 - s) * F.softplus(-kept) + s * F.softplus(kept)
    if variant.hard:
        each = each.topk(max(1, len(each) // 4)).values
    if variant.prior:  # Kiryo et al. 2017: what is labelled is forget text, the background is p = prior p_f + (1 - prior) p_r
        unlabelled = (each.mean() - variant.prior * F.softplus(-forget).mean()).clamp(min=0) / (1 - variant.prior)
        return (is_forget + unlabelled) / 2
    return (is_forget + each.mean()) / 2


def balanced(forget: Tensor, kept: Tensor) -> Tensor:
    """Balanced cross-entropy of log-odds, nats."""
    return (F.softplus(forget).mean() + F.softplus(-kept).mean()) / 2


@torch.no_grad()
def log_odds(head: Head, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
    """Of all scored tokens, and which of them the head knows."""
    parts = [head(texts[start : start + 64]) for start in range(0, len(texts), 64)]
    found, known = zip(*parts)
    return torch.cat(found), torch.cat(known)


def main() -> None:
    args = options(__doc__).parse_args()
    base, sets = load(args)
    header("token heads: made without a fifth of the retain authors, judged on tokens they were not made of")
    examples = {name: sets.examples(name, base) for name in NAMES}
    config = BackgroundConfig(background=64)
    examples["background"] = background_examples(
        base.model, base.tokenizer, examples["forget"], config, ExampleConfig(), fingerprint=base.fingerprint, progress=False
    )
    texts = {
        name: [
            Text(of, torch.from_numpy(e.input_ids).long(), torch.from_numpy(e.scored), e.document)
            for e, of in zip(examples[name], states(base, examples[name], LAYERS))
        ]
        for name in examples
    }
    embedding = base.model.get_output_embeddings().weight.detach().float()
    results = {}
    print(f"{'head':<38} scored right: left-out retain  paraphrased forget  real authors  world facts    AUC    loss  scaled  s")
    for variant in VARIANTS:
        results[variant.title] = of = judge(variant, texts, embedding)
        print(
            f"{variant.title:<38}               {of['retain']:.3f}            {of['forget paraphrased']:.3f}"
            f"               {of['real authors']:.3f}         {of['world facts']:.3f}          {of['auc']:.3f}  {of['loss']:.2f}"
            f"    {of['scaled']:.3f}   {of['seconds']:.1f}",
            flush=True,
        )
    if args.save:
        save(args.save, {"results": results})


def judge(variant: Variant, texts: dict[str, list[Text]], embedding: Tensor) -> dict[str, float]:
    """Shares of tokens on the right side, area under the curve of left-out retain against paraphrased forget tokens, losses."""
    texts = {name: [pooled(text, variant) for text in of] for name, of in texts.items()}
    documents = [text.document for text in texts["retain"]]
    background = texts["background"] if variant.background or not variant.retain else []
    right: dict[str, list[float]] = {}
    sides: list[list[Tensor]] = []
    aucs, seconds = [], []
    for part in unseen(documents):
        kept = [text for text in texts["retain"] if variant.retain and text.document not in part] + background
        started = time.perf_counter()
        head = fit(variant, texts["forget"], kept, embedding)
        seconds.append(time.perf_counter() - started)
        left_out = [text for text in texts["retain"] if text.document in part]
        found = {"retain": log_odds(head, left_out)}
        found |= {name: log_odds(head, texts[name]) for name in ("forget paraphrased", "real authors", "world facts")}
        for name, (values, known) in found.items():
            signed = -values if name == "forget paraphrased" else values
            right.setdefault(name, []).append(float((signed[known] > 0).float().mean()))
        both = [found[name][0][found[name][1]] for name in ("forget paraphrased", "retain")]
        labels = np.repeat([0, 1], [len(of) for of in both])
        aucs.append(float(roc_auc_score(labels, torch.cat(both).numpy())))
        sides.append(both)
    loss = [float(balanced(*both)) for both in sides]
    scaled = [scaled_loss(sides[:i] + sides[i + 1 :], both) for i, both in enumerate(sides)]
    means = {name: float(np.mean(of)) for name, of in right.items()}
    return {**means, "auc": float(np.mean(aucs)), "loss": float(np.mean(loss)), "scaled": float(np.mean(scaled)),
            "seconds": float(np.median(seconds))}  # fmt: skip


def scaled_loss(others: list[list[Tensor]], own: list[Tensor]) -> float:
    """The loss with log-odds times the factor that is best on the other folds' left-out authors."""
    pooled = [torch.cat(of) for of in zip(*others)]
    found = minimize_scalar(lambda log: float(balanced(*(of * np.exp(log) for of in pooled))), bounds=(-8, 2), method="bounded")
    return float(balanced(*(of * float(np.exp(found.x)) for of in own)))


if __name__ == "__main__":
    main()
