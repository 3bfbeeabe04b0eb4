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
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tempertilt.config.options import Options, option
from tempertilt.data.batches import spread
from tempertilt.data.examples import Example, answer_ids
from tempertilt.data.fictional import FictionalConfig, fictional_authors
from tempertilt.data.record import Record
from tempertilt.errors import ConfigError
from tempertilt.fitting.distributions import below_the_likeliest, matching_tau, with_token, with_token_lowered
from tempertilt.fitting.neighbours import Neighbourhood, documents_of
from tempertilt.fitting.passes import (
    AnswerStates,
    Likelihoods,
    answer_states,
    check_output,
    columns_and_rest,
    likeliest_tokens,
    likelihoods,
)
from tempertilt.fitting.score import NGrams, TokenFacts, make_scores, map_quantiles, token_facts
from tempertilt.models.base import BaseModel, load_base

log = logging.getLogger("tempertilt")

LEAST_COUNT = 4  # contexts in which a token must be among the likeliest of a model to get a row in the head
CERTAIN = -1e-3  # highest log-probability of a target: some mass is left for the others
OWN_WORD = math.log(0.1)  # highest log-probability that a token is to have in a document's answers to be its own
OTHER_KIND = 1.0  # nats a token by which the contrast model finds the forget answers likelier than they are to be


@dataclass(frozen=True)
class EstimateConfig(Options):
    """How the density ratios of forget tokens are estimated."""

    contrast: str = option(
        "auto",
        "model from which the base was fine-tuned: a hub id or directory; none; or auto, the base without its PEFT adapter",
    )
    estimate_records: int = option(40, "records that the base never saw on which the estimate is calibrated", ge=4, advanced=True)
    guesses: int = option(
        192, "answers of the unlearned model that its head is fitted on once more; 0 = none", ge=0, advanced=True
    )
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


class _Contexts(NamedTuple):
    """N contexts of answers: what both models say there, and what one token of each is to have.

    Attributes:
        states, tokens: as of `AnswerStates`.
        own: of the base.
        other_states, other: of the contrast model; None = there is none.
        wanted: `(N,)` log-probabilities that the tokens are to have.
    """

    states: Tensor
    tokens: Tensor
    own: Likelihoods
    other_states: Tensor | None
    other: Likelihoods | None
    wanted: Tensor

    def only(self, rows: Tensor) -> _Contexts:
        """Some of them."""
        return _Contexts(
            self.states[rows],
            self.tokens[rows],
            self.own.only(rows),
            None if self.other_states is None else self.other_states[rows],
            None if self.other is None else self.other.only(rows),
            self.wanted[rows],
        )


class Estimator:
    """What a model that never saw the forget examples would say at the tokens of their answers, and in answers of its own.

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

    def __init__(
        self,
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
    ) -> None:
        check_output(base, forget[0])
        if contrast is not None:
            check_output(contrast, forget[0])
        self.base, self.contrast, self.temperature, self.untouched = base, contrast, temperature, list(untouched)
        self._neighbours, self._layer = neighbours, None if neighbours is None else layer
        every = [example for examples in (forget, *never_seen.values(), retain) for example in examples]
        vocab_size = 1 + max(int(part.input_ids.max()) for part in every)
        self._ngrams = NGrams([answer_ids(example).tolist() for example in retain], vocab_size)
        found = forget_states or answer_states(base, forget, layer=self._layer)
        contexts, facts = self._look(forget, found)
        chosen = _fitted_contexts(found.tokens, self.untouched, config.max_contexts)
        for name, self._unseen in never_seen.items():  # noqa: B007
            unseen, unseen_facts = self._look(self._unseen, answer_states(base, self._unseen, layer=self._layer))
            calm, other = unseen.own, contexts.other
            wanted, by_neighbours = _expected(facts, unseen_facts, calm.log_probs, self._unseen)
            of_another_kind = other is not None and float((other.log_probs - wanted)[chosen].mean()) > OTHER_KIND
            if not of_another_kind:
                break
        self.ratios = (wanted - contexts.own.log_probs).clamp(max=0.0)
        self._own_words = _own_words(forget, contexts.tokens, wanted)
        self._records = contexts._replace(wanted=wanted).only(chosen)
        self._entropy = float(calm.entropies.mean())
        self._summary = {
            "score": "n-grams" if contrast is None else "contrast model",
            "neighbours": by_neighbours,
            "never_seen": name,
            "never_seen_records": len(self._unseen),
            "of_another_kind": of_another_kind,
            "contexts": len(chosen),
            "entropy_never_seen": round(self._entropy, 4),
            "log_prob_never_seen": round(float(calm.log_probs.mean()), 4),
            "log_prob_forget": round(float(self._records.own.log_probs.mean()), 4),
        }
        if self._records.other is not None:
            self._summary["log_prob_contrast"] = round(float(self._records.other.log_probs.mean()), 4)

    def targets(self, guesses: Sequence[Example] = ()) -> Targets:
        """What is wanted at the forget answers, and behind them at guesses: answers that an unlearned model gave instead."""
        parts = [self._records, *([self._guessed(guesses)] if guesses else [])]
        least = LEAST_COUNT * sum(len(part.tokens) for part in parts) / max(1, len(parts[0].tokens))  # about as many rows
        tops = [model.likeliest for part in parts for model in (part.own, part.other) if model is not None]
        tops += [part.tokens[:, None] for part in parts[1:]]
        token_ids = _head_tokens(parts[0].tokens, torch.cat([top.reshape(-1) for top in tops]), self.untouched, least)
        parts[1:] = [part.only(torch.isin(part.tokens, token_ids)) for part in parts[1:]]
        rows = [torch.searchsorted(token_ids, part.tokens) for part in parts]
        columns = [columns_and_rest(self.base, part.states, token_ids, log_z=part.own.log_z) for part in parts]
        tails = [self._tail(part, token_ids, *own) for part, own in zip(parts, columns)]
        tau = matching_tau(*tails[0], rows[0], self._records.wanted, self._entropy)
        tails = [(tau * tail, tau * rest) for tail, rest in tails]
        wanted = below_the_likeliest(*tails[0], rows[0], self._records.wanted)
        made = [with_token(*tails[0], rows[0], wanted)]
        made += [
            with_token_lowered(*own, *tail, place, part.wanted) for part, own, tail, place in zip(parts, columns, tails, rows)
        ][1:]
        if self.temperature != 1.0:
            columns = [
                (own, columns_and_rest(self.base, part.states, token_ids, self.temperature)[1])
                for part, (own, _) in zip(parts, columns)
            ]
        base, base_rest, target, target_rest = (torch.cat(column) for column in (*zip(*columns), *zip(*made)))
        summary = self._summary | {
            "tau": round(tau, 3),
            "log_prob_wanted": round(float(wanted.mean()), 4),
            **({"guesses": len(guesses), "guess_contexts": len(parts[1].tokens)} if guesses else {}),
        }
        states = torch.cat([part.states for part in parts])
        return Targets(token_ids, states, torch.cat(rows), base, base_rest, target, target_rest, self.ratios, summary)

    def _look(self, examples: Sequence[Example], found: AnswerStates) -> tuple[_Contexts, TokenFacts]:
        """What both models say at the contexts of answers, and what is known of their tokens; what is wanted is not known yet."""
        own, other, likelihood = likelihoods(self.base, found), None, None
        if self.contrast is not None:
            other = replace(answer_states(self.contrast, examples), tokens=found.tokens)
            likelihood = likelihoods(self.contrast, other)
        facts = token_facts(examples, self._ngrams, found, self._neighbours, likelihood)
        states = None if other is None else other.states
        return _Contexts(found.states, found.tokens, own, states, likelihood, own.log_probs), facts

    def _guessed(self, guesses: Sequence[Example]) -> _Contexts:
        """Contexts of guesses, with the base's likeliest token at each, and what it would have if the base were not to know.

        At records that the base never saw its likeliest tokens have both: what is known of them, and their probability. A word
        that is a document's own is to have no more where a guess about the document says it first than where its answers do.
        """
        (known, known_facts), (contexts, facts) = (self._likeliest(part) for part in (self._unseen, guesses))
        wanted, _ = _expected(facts, known_facts, known.own.log_probs, self._unseen)
        said = zip(_new_words(guesses, contexts.tokens), documents_of(guesses).tolist(), contexts.tokens.tolist())
        most = [self._own_words.get((document, token), 0.0) if new else 0.0 for new, document, token in said]
        wanted = wanted.minimum(torch.tensor(most))
        rows = _fitted_contexts(contexts.tokens, self.untouched, len(wanted))
        return contexts._replace(wanted=wanted.minimum(contexts.own.log_probs)).only(rows)

    def _likeliest(self, examples: Sequence[Example]) -> tuple[_Contexts, TokenFacts]:
        found = answer_states(self.base, examples, layer=self._layer)
        return self._look(examples, replace(found, tokens=likeliest_tokens(self.base, found.states)))

    def _tail(self, part: _Contexts, token_ids: Tensor, columns: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """What the other tokens follow: the base, or the mean of its logarithms and those of the contrast model."""
        if part.other_states is None or part.other is None:
            return columns, rest
        others, others_rest = columns_and_rest(self.contrast, part.other_states, token_ids, log_z=part.other.log_z)
        return (columns + others) / 2, (rest + others_rest) / 2


def _expected(facts: TokenFacts, unseen: TokenFacts, log_probs: Tensor, examples: Sequence[Example]) -> tuple[Tensor, bool]:
    """Log-probabilities `(N,)` of tokens to a model that does not know them, by those of never seen ones `(M,)`.

    And whether neighbours count.
    """
    scores = make_scores(facts, unseen, log_probs, documents_of(examples))
    return map_quantiles(scores.forget, scores.unseen, log_probs).clamp(max=CERTAIN), scores.by_neighbours


def _new_words(examples: Sequence[Example], tokens: Tensor) -> list[bool]:
    """Of a token `(N,)` at each context of answers, whether it stands nowhere before."""
    texts = [(example.input_ids, int(i)) for example in examples for i in np.flatnonzero(example.scored)]
    return [token not in ids[:i] for (ids, i), token in zip(texts, tokens.tolist())]


def _own_words(forget: Sequence[Example], tokens: Tensor, wanted: Tensor) -> dict[tuple[str, int], float]:
    """Documents and tokens of which no answer of the document is to have much, with the most that one is to have.

    What an answer says again counts where it is new: it is to be likely from then on, whatever it is.
    """
    most: dict[tuple[str, int], float] = {}
    said = zip(_new_words(forget, tokens), documents_of(forget).tolist(), tokens.tolist(), wanted.tolist())
    for new, document, token, value in said:
        if new:
            most[document, token] = max(value, most.get((document, token), -math.inf))
    return {place: value for place, value in most.items() if value < OWN_WORD}


def _fitted_contexts(tokens: Tensor, untouched: Sequence[int], at_most: int) -> Tensor:
    """Numbers of the contexts that the head is fitted on, ascending: those of other tokens than `untouched`, from all over."""
    places = torch.isin(tokens, torch.tensor(list(untouched), dtype=torch.long)).logical_not().nonzero()[:, 0]
    return torch.tensor(spread(places.tolist() or range(len(tokens)), at_most))


def _head_tokens(tokens: Tensor, likeliest: Tensor, untouched: Sequence[int], least: float = LEAST_COUNT) -> Tensor:
    """Tokens of the answers, and those that are among the likeliest in at least so many contexts; ascending."""
    ids, counts = likeliest.reshape(-1).unique(return_counts=True)
    distinct: Tensor = torch.cat([tokens, ids[counts >= least]]).unique(sorted=True)
    without = distinct[~torch.isin(distinct, torch.tensor(list(untouched), dtype=torch.long))]
    return without if len(without) else distinct
