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

In a guess, what an unlearned model says instead, y is the base's likeliest token. Its score and Q are those of the base's
likeliest tokens on the records that it never saw.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
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


class _Answers(NamedTuple):
    """Examples, and the states at their answers that the base made, and those `(N, d)` that the contrast model made, if any."""

    examples: Sequence[Example]
    base: AnswerStates
    contrast: Tensor | None


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


class _Columns(NamedTuple):
    """Of N contexts: the columns `(N,)` of their tokens; log-probabilities of the base, and what the other tokens follow.

    Of each K columns `(N, K)` and the rest `(N,)`; and the base's rest tempered, log sum p^(1/T).
    """

    rows: Tensor
    base: tuple[Tensor, Tensor]
    tail: tuple[Tensor, Tensor]
    tempered_rest: Tensor


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

    Raises:
        ModelError: a model changes its logits after the output layer in an unknown way.
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
        self._base, self._contrast, self._temperature, self._untouched = base, contrast, temperature, list(untouched)
        self._neighbours, self._layer = neighbours, None if neighbours is None else layer
        every = [example for examples in (forget, *never_seen.values(), retain) for example in examples]
        vocab_size = 1 + max(int(part.input_ids.max()) for part in every)
        self._ngrams = NGrams([answer_ids(example).tolist() for example in retain], vocab_size)
        contexts, facts = self._look(self._run(forget, forget_states))
        chosen = _fitted_contexts(contexts.tokens, self._untouched, config.max_contexts)
        for name, examples in never_seen.items():
            self._unseen, used = self._run(examples), name
            unseen, unseen_facts = self._look(self._unseen)
            calm, other = unseen.own, contexts.other
            wanted, by_neighbours = _expected(facts, unseen_facts, calm.log_probs, examples)
            of_another_kind = other is not None and float((other.log_probs - wanted)[chosen].mean()) > OTHER_KIND
            if not of_another_kind:
                break
        self._ratios = (wanted - contexts.own.log_probs).clamp(max=0.0)
        self._own_words = _own_words(documents_of(forget), contexts.tokens, wanted, facts.new)
        self._records = contexts._replace(wanted=wanted).only(chosen)
        self._own_contexts = set(_prefixes(forget))
        self._entropy = float(calm.entropies.mean())
        self._summary = {
            "score": "n-grams" if contrast is None else "contrast model",
            "neighbours": by_neighbours,
            "never_seen": used,
            "never_seen_records": len(self._unseen.examples),
            "of_another_kind": of_another_kind,
            "contexts": len(chosen),
            "entropy_never_seen": round(self._entropy, 4),
            "log_prob_never_seen": round(float(calm.log_probs.mean()), 4),
            "log_prob_forget": round(float(self._records.own.log_probs.mean()), 4),
        }
        if self._records.other is not None:
            self._summary["log_prob_contrast"] = round(float(self._records.other.log_probs.mean()), 4)

    def targets(self, guesses: Sequence[Example] = ()) -> Targets:
        """What is wanted at the forget answers, and behind them at the guesses.

        Args:
            guesses: answers that an unlearned model gave to forget prompts, with the documents of their records.
        """
        parts = [self._records, *([self._guessed(guesses)] if guesses else [])]
        token_ids = self._tokens_with_rows(parts)
        records = self._columns(self._records, token_ids)
        tau = matching_tau(*records.tail, records.rows, self._records.wanted, self._entropy)
        tail, rest = (tau * part for part in records.tail)
        wanted = below_the_likeliest(tail, rest, records.rows, self._records.wanted)
        columns, made = [records], [with_token(tail, rest, records.rows, wanted)]
        summary = self._summary | {"tau": round(tau, 3), "log_prob_wanted": round(float(wanted.mean()), 4)}
        if guesses:
            parts[1] = parts[1].only(torch.isin(parts[1].tokens, token_ids))
            found = self._columns(parts[1], token_ids)
            tail, rest = (tau * part for part in found.tail)
            columns.append(found)
            made.append(with_token_lowered(*found.base, tail, rest, found.rows, parts[1].wanted))
            summary |= {"guesses": len(guesses), "guess_contexts": len(found.rows)}
        target, target_rest = (torch.cat(part) for part in zip(*made))
        return Targets(
            token_ids,
            torch.cat([part.states for part in parts]),
            torch.cat([part.rows for part in columns]),
            torch.cat([part.base[0] for part in columns]),
            torch.cat([part.tempered_rest for part in columns]),
            target,
            target_rest,
            self._ratios,
            summary,
        )

    def _tokens_with_rows(self, parts: Sequence[_Contexts]) -> Tensor:
        """The tokens of the records, and those that are often among the likeliest; with guesses more often, so about as many."""
        least = LEAST_COUNT * sum(len(part.tokens) for part in parts) / max(1, len(parts[0].tokens))
        tops = [model.likeliest.reshape(-1) for part in parts for model in (part.own, part.other) if model is not None]
        tops += [part.tokens for part in parts[1:]]
        return _head_tokens(parts[0].tokens, torch.cat(tops), self._untouched, least)

    def _columns(self, part: _Contexts, token_ids: Tensor) -> _Columns:
        base = tail = columns_and_rest(self._base, part.states, token_ids, log_z=part.own.log_z)
        tempered_rest = base[1]
        if part.other_states is not None and part.other is not None:
            other = columns_and_rest(self._contrast, part.other_states, token_ids, log_z=part.other.log_z)
            tail = (base[0] + other[0]) / 2, (base[1] + other[1]) / 2
        if self._temperature != 1.0:
            tempered_rest = columns_and_rest(self._base, part.states, token_ids, self._temperature)[1]
        return _Columns(torch.searchsorted(token_ids, part.tokens), base, tail, tempered_rest)

    def _run(self, examples: Sequence[Example], states: AnswerStates | None = None) -> _Answers:
        """One pass of each model over examples; without the base's, where its states are at hand."""
        own = states or answer_states(self._base, examples, layer=self._layer)
        return _Answers(examples, own, None if self._contrast is None else answer_states(self._contrast, examples).states)

    def _look(self, answers: _Answers, tokens: Tensor | None = None) -> tuple[_Contexts, TokenFacts]:
        """What both models say of one token `(N,)` at each context, the answers' own if not given, and what is known of it.

        What is wanted is not known yet.
        """
        found = answers.base if tokens is None else replace(answers.base, tokens=tokens)
        own, other = likelihoods(self._base, found), None
        if answers.contrast is not None:
            other = likelihoods(self._contrast, AnswerStates(answers.contrast, found.tokens))
        facts = token_facts(answers.examples, self._ngrams, found, self._neighbours, other)
        return _Contexts(found.states, found.tokens, own, answers.contrast, other, own.log_probs), facts

    def _guessed(self, guesses: Sequence[Example]) -> _Contexts:
        """Contexts of guesses, with the base's likeliest token at each, and what it would have if the base were not to know.

        At records that the base never saw its likeliest tokens have both: what is known of them, and their probability. A word
        that is a document's own is to have no more where a guess about the document says it first than where its answers do.
        Contexts that are a record's own are left out: as far as a guess says what the record says, the record decides.
        """
        (known, known_facts), (contexts, facts) = (
            self._look(answers, likeliest_tokens(self._base, answers.base.states))
            for answers in (self._unseen, self._run(guesses))
        )
        wanted, _ = _expected(facts, known_facts, known.own.log_probs, self._unseen.examples)
        said = zip(facts.new.tolist(), documents_of(guesses).tolist(), contexts.tokens.tolist())
        most = [self._own_words.get((document, token), 0.0) if new else 0.0 for new, document, token in said]
        wanted = wanted.minimum(torch.tensor(most)).minimum(contexts.own.log_probs)
        chosen = _fitted_contexts(contexts.tokens, self._untouched, len(wanted))
        others = torch.tensor([context not in self._own_contexts for context in _prefixes(guesses)])
        return contexts._replace(wanted=wanted).only(chosen[others[chosen]])


def _expected(facts: TokenFacts, unseen: TokenFacts, log_probs: Tensor, examples: Sequence[Example]) -> tuple[Tensor, bool]:
    """Log-probabilities `(N,)` of tokens to a model that does not know them, by those of never seen ones `(M,)`.

    And whether neighbours count.
    """
    scores = make_scores(facts, unseen, log_probs, documents_of(examples))
    return map_quantiles(scores.forget, scores.unseen, log_probs).clamp(max=CERTAIN), scores.by_neighbours


def _prefixes(examples: Sequence[Example]) -> list[int]:
    """For each scored token a number that stands for all tokens before it."""
    ids = [example.input_ids.astype(np.int64) for example in examples]
    return [hash(part[:i].tobytes()) for part, example in zip(ids, examples) for i in np.flatnonzero(example.scored)]


def _own_words(documents: NDArray[np.str_], tokens: Tensor, wanted: Tensor, new: Tensor) -> dict[tuple[str, int], float]:
    """Documents and tokens of which no answer of the document is to have much, with the most that one is to have.

    A token counts where it is `new (N,)`: once it was said it is to be likely, whatever it is. The others are `(N,)`, too.
    """
    most: dict[tuple[str, int], float] = {}
    for document, token, value in zip(documents[new.numpy()].tolist(), tokens[new].tolist(), wanted[new].tolist()):
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
