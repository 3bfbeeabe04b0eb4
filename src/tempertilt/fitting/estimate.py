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
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tempertilt.config.options import Options, option
from tempertilt.data.batches import pad_batch, plan_batches, spread
from tempertilt.data.examples import Example, answer_ids
from tempertilt.data.fictional import FictionalConfig, fictional_authors
from tempertilt.data.record import Record
from tempertilt.errors import ConfigError, ModelError
from tempertilt.fitting.features import FeatureConfig
from tempertilt.fitting.neighbours import Neighbourhood, contexts_of
from tempertilt.fitting.workers import batch_features
from tempertilt.models.base import BaseModel, load_base

log = logging.getLogger("tempertilt")

ROWS = 512  # contexts whose logits over the whole vocabulary are held at a time
LIKELIEST = 6  # likeliest tokens of each model at a context that may get a row in the head
LEAST_COUNT = 4  # contexts in which they must be among the likeliest
LEAST_REST = 1e-6  # probability of all tokens without a row
CERTAIN = -1e-3  # highest log-probability of a target: some mass is left for the others
TAU = (0.5, 3.0)
BISECTIONS = 12
ORDER = 4  # of n-grams
OTHER_KIND = 1.0  # nats a token by which the contrast model finds the forget answers likelier than they are to be
FOLDS = 4  # of the records that the base never saw
NEAR_FACTS = 5  # that rest on neighbours, one more where there is a contrast model
NGRAM = 1  # column of their log-probability among the facts


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


@dataclass(frozen=True)
class AnswerStates:
    """Last hidden states `(N, d)` at the positions that predict the answers' tokens `(N,)`.

    `lower` has, for each example, the states `(T, d)` of a lower layer at all its tokens, where they were asked for.
    """

    states: Tensor
    tokens: Tensor
    lower: Sequence[Tensor] | None = None


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


# --- passes --------------------------------------------------------------------------------------------------------------


def answer_states(model: Any, examples: Sequence[Example], batch_tokens: int = 2048, *, layer: int | None = None) -> AnswerStates:
    """One pass of a model's body over examples; on CPU, in the order of the examples. Lower states are those after `layer`."""
    config = FeatureConfig(pooling="last")
    states: dict[int, Tensor] = {}
    tokens: dict[int, Tensor] = {}
    lower: dict[int, Tensor] = {}
    for batch in plan_batches(examples, batch_tokens):
        chosen = [examples[i] for i in batch]
        rows, targets, below = batch_features(model, chosen, config, layer)
        sizes = [example.n_scored for example in chosen]
        states |= dict(zip(batch, rows.split(sizes)))
        tokens |= dict(zip(batch, targets.long().split(sizes)))
        if below is not None:
            lower |= dict(zip(batch, below.split([len(example) for example in chosen])))
    numbers = range(len(examples))
    last, targets = (torch.cat([part[i] for i in numbers]) for part in (states, tokens))
    return AnswerStates(last, targets, [lower[i] for i in numbers] if lower else None)


@torch.inference_mode()
def output_logits(model: Any, states: Tensor, token_ids: Tensor | None = None) -> Tensor:
    """Logits float32 that a model makes of last hidden states `(N, d)`, on the states' device.

    They are of all tokens `(N, V)`, or of some `(N, K)`.
    """
    output = model.get_output_embeddings()
    inputs = states.to(output.weight.device, output.weight.dtype)
    if token_ids is None:
        logits = output(inputs).float().to(states.device)
    elif type(output) is torch.nn.Linear:
        rows = token_ids.to(output.weight.device)
        bias = None if output.bias is None else output.bias[rows]
        logits = torch.nn.functional.linear(inputs, output.weight[rows], bias).float().to(states.device)
    else:
        logits = output(inputs)[:, token_ids.to(output.weight.device)].float().to(states.device)
    config = model.config.get_text_config()
    logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
    logits = logits * (getattr(config, "logit_scale", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits  # type: ignore[no-any-return]


@torch.inference_mode()
def check_output(model: Any, probe: Example) -> None:
    """Raise `ModelError` unless `output_logits` gives the model's own logits."""
    batch = pad_batch([probe], model.device)
    own = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[batch.predicting].float()
    made = output_logits(model, answer_states(model, [probe]).states)
    if not torch.allclose(own.cpu().log_softmax(-1), made.cpu().log_softmax(-1), rtol=1e-2, atol=1e-2):
        raise ModelError(
            f"{type(model).__name__} changes its logits after the output layer in a way that is not known here: fit the head "
            "with --objective classify"
        )


@dataclass(frozen=True)
class Likelihoods:
    """Of each context: log p of its token, entropy in nats, and log sum exp of the logits, `(N,)` each; likeliest other tokens.

    The last are `(N, LIKELIEST)`.
    """

    log_probs: Tensor
    entropies: Tensor
    log_z: Tensor
    likeliest: Tensor


@torch.inference_mode()
def likelihoods(model: Any, found: AnswerStates) -> Likelihoods:
    """What a model says at the contexts of which it made the states."""
    parts = []
    for states, tokens in zip(found.states.split(ROWS), found.tokens.split(ROWS)):
        logits = output_logits(model, states)
        log_z = logits.logsumexp(-1)
        entropy = log_z - ((logits - log_z[:, None]).exp_() * logits).sum(-1)
        own = logits.gather(-1, tokens[:, None])[:, 0] - log_z
        likeliest = logits.scatter_(-1, tokens[:, None], -math.inf).topk(min(LIKELIEST, logits.shape[-1])).indices
        parts.append((own, entropy, log_z, likeliest))
    return Likelihoods(*(torch.cat(column) for column in zip(*parts)))


@torch.inference_mode()
def columns_and_rest(
    model: Any, states: Tensor, token_ids: Tensor, temperature: float = 1.0, log_z: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities `(N, K)` of some tokens, and of all others log sum p^(1/T) `(N,)`.

    `log_z (N,)`, log sum exp of the logits where it is known, saves the logits of the others at T = 1.
    """
    parts = []
    for i, rows in enumerate(states.split(ROWS)):
        if log_z is not None and temperature == 1.0:
            columns = output_logits(model, rows, token_ids) - log_z[i * ROWS : (i + 1) * ROWS, None]
            parts.append((columns, torch.log(-torch.expm1(columns.logsumexp(-1).clamp(max=-LEAST_REST)))))
        else:
            log_probs = output_logits(model, rows).log_softmax(-1)
            parts.append((log_probs[:, token_ids], (log_probs / temperature).index_fill(-1, token_ids, -math.inf).logsumexp(-1)))
    own, rest = zip(*parts)
    return torch.cat(own), torch.cat(rest)


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
        used = facts.shape[1]
        if neighbours is not None:
            plain = used - NEAR_FACTS - (contrast is not None)
            used = min(plain, used, key=lambda count: _left_out_error(facts[:, :count], calm.log_probs, examples))
        scores, unseen_scores = _scores(forget_facts[:, :used], facts[:, :used], calm.log_probs)
        wanted = map_quantiles(scores, unseen_scores, calm.log_probs).clamp(max=CERTAIN)
        near = neighbours is not None and used == facts.shape[1]
        return _NeverSeen(name, wanted, len(examples), near, float(calm.log_probs.mean()), float(calm.entropies.mean()))

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


def map_quantiles(scores: Tensor, known_scores: Tensor, known_values: Tensor) -> Tensor:
    """Values `(N,)` at the quantiles that `scores (N,)` have among `known_scores (M,)`, a monotone map.

    Among M records with both a score and a value, the score at a quantile is mapped to the value at the same quantile.
    """
    places, values = (np.sort(part.double().numpy()) for part in (known_scores, known_values))
    quantiles = np.searchsorted(places, scores.double().numpy(), side="right") / len(places)
    mapped = np.quantile(values, np.clip(quantiles, 0.0, 1.0))
    return torch.from_numpy(mapped).float()


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


# --- the score -----------------------------------------------------------------------------------------------------------


class NGrams:
    """Interpolated n-grams with Witten-Bell weights (Witten, Bell 1991), of token sequences.

    Args:
        sequences: what is counted.
        vocab_size: of the uniform distribution at the bottom.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], vocab_size: int, order: int = ORDER) -> None:
        self.vocab_size = vocab_size
        self.counts: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(order)]
        for sequence in sequences:
            for i, token in enumerate(sequence):
                for n in range(min(order, i + 1)):
                    self.counts[n][tuple(sequence[i - n : i])][token] += 1

    def log_prob(self, context: Sequence[int], token: int) -> float:
        """Log-probability of a token after a context, nats."""
        probability = 1 / self.vocab_size
        for n, counts in enumerate(self.counts):
            if n > len(context) or not (after := counts.get(tuple(context[len(context) - n :]))):
                break
            total, kinds = after.total(), len(after)
            probability = (after.get(token, 0) + kinds * probability) / (total + kinds)
        return math.log(probability)


def _scores(facts: Tensor, unseen_facts: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the forget contexts and of the never seen ones: a linear fit of the latter's log-probabilities on facts.

    Args:
        facts, unseen_facts: `(N, k)` and `(M, k)` float64.
        log_probs: of the base at the never seen contexts `(M,)`.
    """
    solution = torch.linalg.lstsq(unseen_facts, log_probs.double()[:, None], driver="gelsd").solution
    return (facts @ solution)[:, 0].float(), (unseen_facts @ solution)[:, 0].float()


def _left_out_error(facts: Tensor, log_probs: Tensor, examples: Sequence[Example]) -> float:
    """Mean squared error of the scores of records that the fit was made without, a fold of documents at a time."""
    documents = [example.document for example in examples for _ in range(example.n_scored)]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(documents))}
    fold = torch.tensor([numbers[name] % FOLDS for name in documents])
    errors = [torch.zeros(0, dtype=torch.float64)]
    for number in range(min(FOLDS, len(numbers))):
        inside = fold == number
        if not bool(inside.all()):
            scores, _ = _scores(facts[inside], facts[~inside], log_probs[~inside])
            errors.append((scores.double() - log_probs[inside].double()).square())
    return float(torch.cat(errors).mean())


def token_facts(
    examples: Sequence[Example],
    ngrams: NGrams,
    found: AnswerStates,
    neighbours: Neighbourhood | None,
    likelihood: Likelihoods | None,
) -> Tensor:
    """`(N, k)` float64: what n-grams, contrast model and neighbours say of the answers' tokens, and the surer of each two.

    What rests on neighbours comes last.

    Args:
        found: of the base, with lower states where there are neighbours.
        likelihood: of the contrast model.
    """
    facts = torch.from_numpy(np.concatenate([_facts(ngrams, example) for example in examples]))
    columns, guesses = [facts], [facts[:, NGRAM]]
    if likelihood is not None:
        own = likelihood.log_probs.double()
        columns.append(torch.stack([own, likelihood.entropies.double(), own.maximum(guesses[0])], 1))
        guesses.append(own)
    if neighbours is not None and found.lower is not None:
        near = neighbours.facts(contexts_of(examples, found.lower))
        columns += [near, near[:, :1] * near[:, 1:2], *(near[:, :1].maximum(guess[:, None]) for guess in guesses)]
    return torch.cat(columns, 1)


def _facts(ngrams: NGrams, example: Example) -> NDArray[np.float64]:
    """`(n_scored, 8)`: what is known of each scored token without any model."""
    ids = example.input_ids.tolist()
    first = example.first_scored
    rows = []
    for i in np.flatnonzero(example.scored):
        token, before = ids[i], ids[:i]
        log_prob = ngrams.log_prob(before[max(first, i - ORDER + 1) :], token)
        length, share = _repeated(before, token)
        in_prompt, in_answer = float(token in ids[:first]), float(token in ids[first:i])
        rows.append(
            [1.0, log_prob, in_prompt, in_answer, length * share, length * (1 - share), log_prob * share, min(i - first, 12)]
        )
    return np.array(rows, np.float64)


def _repeated(before: Sequence[int], token: int) -> tuple[int, float]:
    """How many of the last tokens stand somewhere before as well, and how often the token followed them there."""
    for length in (4, 3, 2, 1):
        end = tuple(before[-length:])
        places = [j for j in range(len(before) - length) if tuple(before[j : j + length]) == end]
        if places:
            return length, sum(before[j + length] == token for j in places) / len(places)
    return 0, 0.0
