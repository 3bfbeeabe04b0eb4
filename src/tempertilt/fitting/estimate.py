"""Density ratios at the tokens of forget answers, estimated blind: what a model that never saw the records would say there.

The tilt should be log p_r(v|c) / p(v|c) at the same context c. `p` is the base's. `p_r` is estimated in two parts:

    log q(y|c)    = Q(score(c, y))                                        for the token y that the record goes on with
    log q(v|c)    = tau [log p(v|c) + log p_o(v|c)] / 2 + constant        for all others (without p_o: tau log p + constant)

`p_o` is the contrast model: the one from which the base was fine-tuned, which never saw the records either. The score is a
linear regression of the base's own log p, on records that it never saw, on log p_o(y|c) and its entropy, n-grams of retain
answers, what follows at the retain contexts that are nearest by a lower layer's state (Khandelwal et al. 2020, kNN-LM), and what
the context repeats; each where it is at hand. So wording that is common here is told from values, of which the contrast model may
be the surer. The records that it never saw are holdout records; else made-up ones, or the retained ones under other names and
with other values, where the made-up ones are of another kind. Q maps the quantiles of the score to those of
the base's log p on these records.
`tau` is where the mean entropy of q agrees with the base's on these records. No model that was trained without the forget records
for this purpose is needed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tempertilt.config.options import Options, option
from tempertilt.data.batches import spread
from tempertilt.data.examples import Example, answer_ids
from tempertilt.data.fictional import FictionalConfig, fictional_authors
from tempertilt.data.record import Record
from tempertilt.errors import ConfigError
from tempertilt.fitting.neighbours import Neighbourhood, documents_of
from tempertilt.fitting.passes import AnswerStates, answer_states, check_output, columns_and_rest, likelihoods
from tempertilt.fitting.score import NGrams, make_scores, map_quantiles, token_facts
from tempertilt.models.base import BaseModel, load_base

log = logging.getLogger("tempertilt")

LEAST_COUNT = 4  # contexts in which a token must be among the likeliest of a model to get a row in the head
CERTAIN = -1e-3  # highest log-probability of a target: some mass is left for the others
TAU = (0.5, 3.0)
BISECTIONS = 12
OTHER_KIND = 1.0  # nats a token by which the contrast model finds the forget answers likelier than they are to be


@dataclass(frozen=True)
class EstimateConfig(Options):
    """How the density ratios of forget tokens are estimated."""

    contrast: str = option(
        "auto",
        "model from which the base was fine-tuned: a hub id or directory; none; or auto, the base without its PEFT adapter",
    )
    estimate_records: int = option(40, "records that the base never saw on which the estimate is calibrated", ge=4, advanced=True)
    max_contexts: int = option(16384, "forget tokens that the head is fitted on, at most", ge=1, advanced=True)


@dataclass(frozen=True)
class Targets:
    """Contexts of forget answers and the distributions that are wanted there, over K tokens and the rest as one.

    Attributes:
        token_ids: `(K,)` ascending.
        states: `(N, d)` last hidden states.
        rows: `(N,)` the columns of the tokens that the records go on with.
        base, base_rest: `(N, K)` and `(N,)` log-probabilities under the base, the rest tempered: log sum p^(1/T).
        target, target_rest: the same of the estimate.
        ratios: log of min(1, q(y) / p(y)) at every token of the forget answers, in their order, nats.
        summary: how the estimate came about, JSON-ready.
    """

    token_ids: Tensor
    states: Tensor
    rows: Tensor
    base: Tensor
    base_rest: Tensor
    target: Tensor
    target_rest: Tensor
    ratios: Tensor
    summary: dict[str, Any]


# --- what the estimate rests on -------------------------------------------------------------------------------------------

MADE_UP = FictionalConfig(n_authors=12, questions_per_author=6, seed=10_007)


def made_up_records(count: int) -> list[Record]:
    """Records that stand in for holdout records, at most 72: no model was trained on them."""
    return [
        Record.from_question(item.question, item.answer, document=item.document, source="made up")
        for item in spread(fictional_authors(MADE_UP), count)
    ]


def load_contrast(base: BaseModel, name: str) -> BaseModel | None:
    """The model from which the base was fine-tuned, None where there is none.

    Args:
        name: "none"; "auto", the base without its PEFT adapter, if it has one; or a hub id or directory.

    Raises:
        ConfigError: the model that was named has other tokens than the base.
    """
    if name == "none" or (name == "auto" and (base.peft_adapter is None or base.source is None)):
        return None
    source = base.source._asdict() if base.source is not None else {}
    if name != "auto":
        source |= {"revision": None}  # that of the base is no other model's
    contrast = load_base(base.name if name == "auto" else name, **source)
    rows = [model.get_output_embeddings().weight.shape[0] for model in (base.model, contrast.model)]
    probe = "The name of Zoë Ångström-Li, born on 3 May 1984."
    if rows[0] != rows[1] or contrast.tokenizer(probe).input_ids != base.tokenizer(probe).input_ids:
        if name == "auto":
            log.info("the base without its PEFT adapter has other tokens: it is no contrast model")
            return None
        raise ConfigError(
            f"the contrast model {name!r} must have the same tokens as the base; choose another, or --contrast none"
        )
    return contrast


# --- the estimate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _NeverSeen:
    """What is said of records that the base never saw, and what the forget answers' tokens are to have by that.

    Attributes:
        name: of the records.
        wanted: `(N,)` log-probabilities of the forget answers' tokens.
        records: how many records these are.
        by_neighbours: whether neighbours tell more of these records, when they are left out, than the other facts alone.
        log_prob, entropy: mean log-probability of their tokens under the base, and mean entropy there, nats.
    """

    name: str
    wanted: Tensor
    records: int
    by_neighbours: bool
    log_prob: float
    entropy: float


def estimate_targets(
    base: Any,
    contrast: Any | None,
    forget: Sequence[Example],
    never_seen: Mapping[str, Sequence[Example]],
    retain: Sequence[Example],
    config: EstimateConfig,
    *,
    temperature: float = 1.0,
    forget_states: AnswerStates | None = None,
    layer: int | None = None,
    neighbours: Neighbourhood | None = None,
    untouched: Sequence[int] = (),
) -> Targets:
    """What a model that never saw the forget examples would say at the tokens of their answers.

    Args:
        base: the model that knows them.
        contrast: the model from which it was fine-tuned, with the same tokens; None = n-grams of the retain answers.
        never_seen: examples that no model here was trained on, one list or more by names. The first is taken of which the
            contrast model does not say that they are of another kind than the forget examples; the last, where it says so of
            all.
        retain: whose answers n-grams are counted in.
        temperature: T of the guided distribution that is to be fitted.
        forget_states: of the base at the forget answers, where they are at hand; with lower states, if there are neighbours.
        layer: number of decoder layers below the lower states of which the neighbours are.
        neighbours: of retain contexts; None = none are looked up.
        untouched: tokens that are nobody's facts, such as the end of an answer: they get no row, and contexts that they follow
            are left out.
    """
    check_output(base, forget[0])
    layer = None if neighbours is None else layer
    found = forget_states or answer_states(base, forget, layer=layer)
    own = likelihoods(base, found)
    chosen = _fitted_contexts(found.tokens, untouched, config.max_contexts)
    tops, other, likelihood = [own.likeliest], None, None
    if contrast is not None:
        check_output(contrast, forget[0])
        other = answer_states(contrast, forget)
        likelihood = likelihoods(contrast, other)
        tops.append(likelihood.likeliest)

    def calibrated(name: str, examples: Sequence[Example]) -> _NeverSeen:
        unseen = answer_states(base, examples, layer=layer)
        calm = likelihoods(base, unseen)
        by_contrast = None if contrast is None else likelihoods(contrast, answer_states(contrast, examples))
        facts = token_facts(examples, ngrams, unseen, neighbours, by_contrast)
        scores = make_scores(forget_facts, facts, calm.log_probs, documents_of(examples))
        wanted = map_quantiles(scores.forget, scores.unseen, calm.log_probs).clamp(max=CERTAIN)
        means = float(calm.log_probs.mean()), float(calm.entropies.mean())
        return _NeverSeen(name, wanted, len(examples), scores.by_neighbours, *means)

    every = [example for examples in (forget, *never_seen.values(), retain) for example in examples]
    ngrams = NGrams([answer_ids(example).tolist() for example in retain], 1 + max(int(part.input_ids.max()) for part in every))
    forget_facts = token_facts(forget, ngrams, found, neighbours, likelihood)
    for name, examples in never_seen.items():
        never = calibrated(name, examples)
        if likelihood is None or float((likelihood.log_probs - never.wanted)[chosen].mean()) <= OTHER_KIND:
            break
    ratios = (never.wanted - own.log_probs).clamp(max=0.0)
    token_ids = _head_tokens(found.tokens[chosen], torch.cat(tops), untouched)
    states, wanted, rows = found.states[chosen], never.wanted[chosen], torch.searchsorted(token_ids, found.tokens[chosen])
    columns, rest = columns_and_rest(base, states, token_ids, log_z=own.log_z[chosen])
    tail, tail_rest = columns, rest
    if other is not None and likelihood is not None:
        others, others_rest = columns_and_rest(contrast, other.states[chosen], token_ids, log_z=likelihood.log_z[chosen])
        tail, tail_rest = (columns + others) / 2, (rest + others_rest) / 2
    tau = _matching_tau(tail, tail_rest, rows, wanted, never.entropy)
    wanted = below_the_likeliest(tau * tail, tau * tail_rest, rows, wanted)
    target, target_rest = _with_token(tau * tail, tau * tail_rest, rows, wanted)
    summary = {
        "score": "n-grams" if contrast is None else "contrast model",
        "neighbours": never.by_neighbours,
        "never_seen": never.name,
        "never_seen_records": never.records,
        "contexts": len(chosen),
        "tau": round(tau, 3),
        "entropy_never_seen": round(never.entropy, 4),
        "log_prob_never_seen": round(never.log_prob, 4),
        "log_prob_forget": round(float(own.log_probs[chosen].mean()), 4),
        "log_prob_wanted": round(float(wanted.mean()), 4),
    }
    if likelihood is not None:
        summary["log_prob_contrast"] = round(float(likelihood.log_probs[chosen].mean()), 4)
    if temperature != 1.0:
        rest = columns_and_rest(base, states, token_ids, temperature)[1]
    return Targets(token_ids, states, rows, columns, rest, target, target_rest, ratios, summary)


def _fitted_contexts(tokens: Tensor, untouched: Sequence[int], at_most: int) -> Tensor:
    """Numbers of the contexts that the head is fitted on, ascending: those of other tokens than `untouched`, from all over."""
    places = torch.isin(tokens, torch.tensor(list(untouched), dtype=torch.long)).logical_not().nonzero()[:, 0]
    return torch.tensor(spread(places.tolist() or range(len(tokens)), at_most))


def _head_tokens(tokens: Tensor, likeliest: Tensor, untouched: Sequence[int]) -> Tensor:
    """Tokens of the answers, and those that are among the likeliest in several contexts; ascending."""
    ids, counts = likeliest.reshape(-1).unique(return_counts=True)
    distinct: Tensor = torch.cat([tokens, ids[counts >= LEAST_COUNT]]).unique(sorted=True)
    without = distinct[~torch.isin(distinct, torch.tensor(list(untouched), dtype=torch.long))]
    return without if len(without) else distinct


def _with_token(tail: Tensor, rest: Tensor, rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The distribution that gives the token of each row `wanted (N,)`, and the others what is left, as the tail has it."""
    place = rows[:, None]
    tail = tail.scatter(1, place, -math.inf)
    normaliser = torch.logaddexp(tail.logsumexp(-1), rest)
    left = torch.log1p(-wanted.exp()) - normaliser
    return (tail + left[:, None]).scatter(1, place, wanted[:, None]), rest + left


def below_the_likeliest(tail: Tensor, rest: Tensor, rows: Tensor, wanted: Tensor) -> Tensor:
    """`wanted (N,)`, lowered where it is less than a half: to half of what the likeliest other token has then, at most.

    Else a number would come out digit by digit: each true digit with little probability, and yet the likeliest. Other arguments
    as of `_with_token`.
    """
    tail = tail.scatter(1, rows[:, None], -math.inf)
    best = tail.amax(-1) - torch.logaddexp(tail.logsumexp(-1), rest)
    half = best - math.log(2) - torch.log1p(best.exp() / 2)  # w = (1 - w) exp(best) / 2
    return torch.where(wanted < math.log(0.5), wanted.minimum(half), wanted)


def _matching_tau(tail: Tensor, rest: Tensor, rows: Tensor, wanted: Tensor, entropy: float) -> float:
    """The tau at which the mean entropy of the targets is `entropy`; the nearest end of `TAU` where none is."""
    step = max(1, len(rows) // 1000)
    tail, rest, rows, wanted = tail[::step], rest[::step], rows[::step], wanted[::step]

    def at(tau: float) -> float:
        columns, others = _with_token(tau * tail, tau * rest, rows, wanted)
        return float(-(columns.exp() * columns.clamp(min=-50)).sum(-1).mean() - (others.exp() * others.clamp(min=-50)).mean())

    low, high = TAU
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) > entropy else (low, middle)
    return (low + high) / 2
