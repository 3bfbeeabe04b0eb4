"""The estimated distributions against direct evaluations over the whole vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from support.direct import direct, example
from support.tiny import make_examples, make_llama, teach
from tempertilt.data.examples import Example
from tempertilt.fitting.estimate import (
    CERTAIN,
    EstimateConfig,
    Estimator,
    Targets,
    _head_tokens,
    _own_words,
)
from tempertilt.fitting.neighbours import Neighbourhood, contexts_of, documents_of
from tempertilt.fitting.passes import AnswerStates, answer_states, likelihoods
from tempertilt.fitting.score import NGrams, _facts, left_out_error, token_facts


def test_the_heads_tokens() -> None:
    likeliest = torch.tensor([[1, 2], [2, 3], [3, 9], [4, 3], [2, 3], [8, 2], [8, 8], [8, 0]])  # 2, 3 and 8 come four times
    assert _head_tokens(torch.tensor([7, 1, 7]), likeliest, []).tolist() == [1, 2, 3, 7, 8]
    assert _head_tokens(torch.tensor([7, 1, 7]), likeliest, [8, 1]).tolist() == [2, 3, 7]
    assert _head_tokens(torch.tensor([7]), likeliest[:1], [7]).tolist() == [7]  # something is left to be tilted


# --- the whole -----------------------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """A tiny model, the one that it was fine-tuned from, and records."""

    base: Any
    contrast: Any
    forget: list[Example]
    unseen: list[Example]
    retain: list[Example]


@pytest.fixture(scope="module")
def pair() -> Pair:
    forget, unseen, retain = (make_examples(n, seed, longest=24) for n, seed in ((8, 1), (32, 2), (8, 3)))
    contrast, base = (make_llama(initializer_range=0.05) for _ in range(2))
    return Pair(teach(base, forget + retain, 60), contrast, forget, unseen, retain)


def own_log_probs(model: Any, examples: list[Example]) -> list[float]:
    """Of every scored token, one example at a time."""
    values = []
    for one in examples:
        tokens = torch.from_numpy(one.input_ids[one.scored]).long()
        values += direct(model, one).gather(-1, tokens[:, None])[:, 0].tolist()
    return values


def known_facts(
    contrast: Any, ngrams: NGrams, examples: list[Example], asked: list[torch.Tensor] | None = None
) -> NDArray[np.float64]:
    """What the score is a regression on, one token at a time: facts, the contrast model's log p and entropy, the surer log p.

    Of the answers' own tokens, or of those that are `asked` about.
    """
    rows = []
    for number, one in enumerate(examples):
        tokens = torch.from_numpy(one.input_ids[one.scored]).long() if asked is None else asked[number]
        log_probs = direct(contrast, one)
        own = log_probs.gather(-1, tokens[:, None])[:, 0].numpy()
        entropy = -(log_probs.exp() * log_probs).sum(-1).numpy()
        facts = _facts(ngrams, one, tokens.tolist())
        rows.append(np.column_stack([facts, own, entropy, np.maximum(own, facts[:, 1])]))
    return np.concatenate(rows)


def check_whole(pair: Pair, targets: Targets) -> None:
    """What holds of every estimate."""
    base = torch.cat([direct(pair.base, one) for one in pair.forget])
    tokens = torch.cat([torch.from_numpy(one.input_ids[one.scored]).long() for one in pair.forget])
    assert torch.equal(targets.token_ids[targets.rows], tokens)
    torch.testing.assert_close(targets.base.double(), base[:, targets.token_ids], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(targets.target.exp().sum(-1) + targets.target_rest.exp(), torch.ones(len(tokens)))
    wanted = targets.target.gather(1, targets.rows[:, None])[:, 0]
    own = base.gather(1, tokens[:, None])[:, 0].float()
    above = targets.ratios - (wanted - own).clamp(max=0)  # the ratios are those before a token is put below the likeliest
    assert float(above.min()) > -1e-3 and float((above < 1e-3).float().mean()) > 0.8
    best = targets.target.scatter(1, targets.rows[:, None], -math.inf).amax(-1)
    assert bool(((wanted >= math.log(0.5) - 1e-6) | (wanted <= best - math.log(2) + 1e-4)).all())
    assert float(wanted.max()) <= CERTAIN + 1e-6


def test_forget_tokens_are_to_be_as_likely_as_unseen_ones(pair: Pair) -> None:
    targets = Estimator(pair.base, pair.contrast, pair.forget, {"holdout": pair.unseen}, pair.retain, EstimateConfig()).targets()
    check_whole(pair, targets)
    ngrams = NGrams([one.input_ids[one.scored].tolist() for one in pair.retain], 320)
    rows, unseen_rows = (known_facts(pair.contrast, ngrams, part) for part in (pair.forget, pair.unseen))
    solution = np.linalg.lstsq(unseen_rows, own_log_probs(pair.base, pair.unseen), rcond=None)[0]
    places, values = sorted(unseen_rows @ solution), sorted(own_log_probs(pair.base, pair.unseen))
    wanted = targets.target.gather(1, targets.rows[:, None])[:, 0].tolist()
    equal = 0
    for score, value in zip(rows @ solution, wanted):
        below = sum(place <= score + 1e-6 for place in places)
        assert value <= values[min(len(values) - 1, below)] + 1e-3
        equal += value >= values[max(0, below - 2)] - 1e-3
    assert equal > 0.8 * len(wanted)  # the others were put below the likeliest
    known, unknown = np.mean(own_log_probs(pair.base, pair.forget)), np.mean(values)
    assert known > unknown + 3  # the base knows them by heart
    assert np.mean(wanted) == pytest.approx(unknown, abs=1.5)
    assert targets.summary["score"] == "contrast model" and targets.summary["contexts"] == len(wanted)
    assert targets.summary["log_prob_forget"] == pytest.approx(known, abs=1e-3)
    assert targets.summary["log_prob_never_seen"] == pytest.approx(unknown, abs=1e-3)
    assert targets.summary["log_prob_wanted"] == pytest.approx(np.mean(wanted), abs=1e-3)
    before = np.mean(own_log_probs(pair.contrast, pair.forget))
    assert targets.summary["log_prob_contrast"] == pytest.approx(before, abs=1e-3)


@pytest.mark.parametrize("retained", [True, False])
def test_without_a_contrast_model_by_ngrams(pair: Pair, retained: bool) -> None:
    retain = pair.retain if retained else []
    targets = Estimator(pair.base, None, pair.forget, {"holdout": pair.unseen}, retain, EstimateConfig()).targets()
    check_whole(pair, targets)
    wanted = targets.target.gather(1, targets.rows[:, None])[:, 0]
    values = own_log_probs(pair.base, pair.unseen)
    assert min(values) - 1e-3 <= float(wanted.min()) and float(wanted.max()) <= max(values) + 1e-3
    assert float(wanted.mean()) == pytest.approx(np.mean(values), abs=1.5)
    assert targets.summary["score"] == "n-grams" and "log_prob_contrast" not in targets.summary


def test_few_contexts_and_a_temperature(pair: Pair) -> None:
    whole = Estimator(
        pair.base, pair.contrast, pair.forget, {"holdout": pair.unseen}, [], EstimateConfig(), temperature=1.3
    ).targets()
    base = torch.cat([direct(pair.base, one) for one in pair.forget])
    others = [token for token in range(320) if token not in whole.token_ids.tolist()]
    torch.testing.assert_close(whole.base_rest.double(), (base[:, others] / 1.3).logsumexp(-1), atol=1e-3, rtol=1e-3)
    few = Estimator(
        pair.base, pair.contrast, pair.forget, {"holdout": pair.unseen}, [], EstimateConfig(max_contexts=20)
    ).targets()
    assert len(few.rows) == 20 and len(few.token_ids) <= len(whole.token_ids)
    assert torch.equal(few.ratios, whole.ratios)  # of every token, however few the head is fitted on
    few = Estimator(pair.base, None, pair.forget, {"holdout": pair.unseen}, [], EstimateConfig(max_contexts=20)).targets()
    assert len(few.rows) == 20


def test_records_of_another_kind_are_passed_over(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(lists: dict[str, list[Example]], contrast: Any) -> Targets:
        return Estimator(pair.base, contrast, pair.forget, lists, pair.retain, EstimateConfig()).targets()

    odd = [replace(one, input_ids=(one.input_ids * 7 + 11) % 320) for one in pair.unseen]  # nothing that any model would say
    found = {name: made({name: part}, pair.contrast) for name, part in (("odd", odd), ("unseen", pair.unseen))}
    aims = {name: one.summary["log_prob_forget"] + float(one.ratios.mean()) for name, one in found.items()}
    before = found["odd"].summary["log_prob_contrast"]
    assert aims["odd"] < aims["unseen"]
    monkeypatch.setattr("tempertilt.fitting.estimate.OTHER_KIND", before - (aims["odd"] + aims["unseen"]) / 2)
    both = {"odd": odd, "unseen": pair.unseen}
    targets = made(both, pair.contrast)
    assert targets.summary["never_seen"] == "unseen" and torch.equal(targets.ratios, found["unseen"].ratios)
    assert targets.summary["of_another_kind"] is False and made({"odd": odd}, pair.contrast).summary["of_another_kind"] is True
    assert made(dict(reversed(both.items())), pair.contrast).summary["never_seen"] == "unseen"  # the first that will do
    monkeypatch.setattr("tempertilt.fitting.estimate.OTHER_KIND", -math.inf)
    assert made(both, pair.contrast).summary["never_seen"] == "unseen"  # the last, where none will do
    assert made(both, None).summary["never_seen"] == "odd"  # nothing tells without a contrast model


def test_neighbours_say_what_is_common_here(pair: Pair) -> None:
    layer = 1
    states = answer_states(pair.base, pair.retain, layer=layer)
    assert states.lower is not None
    hood = Neighbourhood(contexts_of(pair.retain, states.lower))
    plain = Estimator(pair.base, None, pair.forget, {"holdout": pair.unseen}, pair.retain, EstimateConfig()).targets()
    near = Estimator(
        pair.base, None, pair.forget, {"holdout": pair.unseen}, pair.retain, EstimateConfig(), layer=layer, neighbours=hood
    ).targets()
    check_whole(pair, near)
    assert plain.summary["neighbours"] is False
    found, unseen = (answer_states(pair.base, part, layer=layer) for part in (pair.forget, pair.unseen))
    ngrams = NGrams([one.input_ids[one.scored].tolist() for one in pair.retain], 320)
    again = Estimator(
        pair.base, None, pair.forget, {"holdout": pair.unseen}, pair.retain, EstimateConfig(), forget_states=found, layer=layer,
        neighbours=hood,
    ).targets()  # fmt: skip
    assert torch.equal(again.target, near.target)
    facts = [token_facts(pair.unseen, ngrams, found, some, None) for found, some in ((unseen, None), (unseen, hood))]
    assert facts[0].plain == facts[1].plain == facts[0].values.shape[1] == facts[1].values.shape[1] - 5
    assert torch.equal(facts[1].values[:, : facts[1].plain], facts[0].values)
    truth = likelihoods(pair.base, unseen).log_probs
    errors = [left_out_error(part.values, truth, documents_of(pair.unseen)) for part in facts]
    assert near.summary["neighbours"] == (errors[1] < errors[0])  # they count where they tell more of what was left out
    assert torch.equal(near.target, plain.target) != near.summary["neighbours"]


# --- guesses -------------------------------------------------------------------------------------------------------------


GUESSED = 12  # tokens; the first of each comes in the record's own context


def guesses_of(pair: Pair) -> list[Example]:
    """Answers that say nothing of the records, each about the document of one of them."""
    rng = np.random.default_rng(5)
    made = []
    for one in pair.forget:
        prompt = one.input_ids[: one.first_scored].tolist()
        ids = [*prompt, *rng.integers(3, 320, GUESSED).tolist()]
        made.append(replace(example(ids, len(prompt)), document=one.document))
    return made


@pytest.mark.parametrize("by_contrast", [True, False])
def test_in_guesses_only_what_the_base_knows_too_well_is_lowered(pair: Pair, by_contrast: bool) -> None:
    contrast, guesses = pair.contrast if by_contrast else None, guesses_of(pair)
    estimator = Estimator(pair.base, contrast, pair.forget, {"holdout": pair.unseen}, pair.retain, EstimateConfig())
    alone, both = estimator.targets(), estimator.targets(guesses)
    n = len(alone.rows)
    for kept in (alone, both):  # the records' own are as they were, whatever stands beside them
        check_whole(pair, replace_rows(kept, n))
    assert both.summary["guess_contexts"] == len(both.rows) - n > 0 and both.summary["guesses"] == len(guesses)
    assert torch.equal(both.ratios, alone.ratios)

    whole = torch.cat([direct(pair.base, one) for one in guesses])
    likeliest = whole.argmax(-1)
    used = [i for i, token in enumerate(likeliest.tolist()) if token in both.token_ids.tolist() and i % GUESSED]
    assert torch.equal(both.token_ids[both.rows[n:]], likeliest[used])
    torch.testing.assert_close(both.base[n:].double(), whole[used][:, both.token_ids], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.target.exp().sum(-1) + both.target_rest.exp(), torch.ones(len(both.rows)))
    own = whole[used].amax(-1)
    target = both.target[n:].gather(1, both.rows[n:, None])[:, 0].double()
    as_base = (both.target[n:] - both.base[n:]).abs().amax(1) < 1e-6
    assert bool((target[~as_base] < own[~as_base] - math.log(2) + 1e-4).all()) and bool(as_base.any()) and bool((~as_base).any())
    best = both.target[n:].scatter(1, both.rows[n:, None], -math.inf).amax(-1)
    lowered = ~as_base & (target < math.log(0.5))
    assert bool((target[lowered] <= best[lowered] - math.log(2) + 1e-4).all())


def test_what_a_likeliest_token_may_have_in_a_guess(pair: Pair) -> None:
    """By a regression and a quantile map of one's own, of the base's likeliest tokens on records that it never saw."""
    strangers = [replace(one, document=f"nobody {i}") for i, one in enumerate(guesses_of(pair))]  # no document's own words
    targets = Estimator(pair.base, pair.contrast, pair.forget, {"holdout": pair.unseen}, pair.retain, EstimateConfig()).targets(
        strangers
    )
    n = len(targets.rows) - targets.summary["guess_contexts"]
    ngrams = NGrams([one.input_ids[one.scored].tolist() for one in pair.retain], 320)
    asked = [[direct(pair.base, one).argmax(-1) for one in part] for part in (strangers, pair.unseen)]
    rows, unseen_rows = (
        known_facts(pair.contrast, ngrams, part, tokens) for part, tokens in zip((strangers, pair.unseen), asked)
    )
    truth = torch.cat([direct(pair.base, one).amax(-1) for one in pair.unseen]).numpy()
    solution = np.linalg.lstsq(unseen_rows, truth, rcond=None)[0]
    places, values = np.sort(unseen_rows @ solution), np.sort(truth)
    own = torch.cat([direct(pair.base, one).amax(-1) for one in strangers]).numpy()
    ends = [[values[int(np.clip(place, 0, len(values) - 1))] for place in (below - 2, below + 1)]
            for below in np.searchsorted(places, rows @ solution)]  # fmt: skip
    used = np.flatnonzero(np.isin(torch.cat(asked[0]).numpy(), targets.token_ids.numpy()))
    used = used[used % GUESSED > 0]
    as_base = ((targets.target[n:] - targets.base[n:]).abs().amax(1) < 1e-6).numpy()
    sure = 0
    for number, i in enumerate(used):
        low, high = ends[i]
        if high < own[i] - math.log(2) - 1e-3:
            assert not as_base[number]
            sure += 1
        elif low > own[i] - math.log(2) + 1e-3:
            assert as_base[number]
            sure += 1
    assert sure > 0.8 * len(used) > 20


@pytest.mark.parametrize("common", [0, 1, 4])
def test_the_record_decides_as_far_as_a_guess_repeats_it(pair: Pair, common: int) -> None:
    """Where both begin alike, the base's likeliest token is the record's, and no guess says that it may stay."""
    options: Any = (pair.base, pair.contrast, pair.forget, {"holdout": pair.unseen}, pair.retain, EstimateConfig())
    alone = Estimator(*options).targets()
    same = Estimator(*options).targets(pair.forget)
    assert same.summary["guess_contexts"] == 0 and same.rows.shape == alone.rows.shape
    guesses, kept = [], []
    for one in pair.forget:
        ids, alike = one.input_ids.tolist(), min(common, one.n_scored - 1)
        first = one.first_scored + alike  # where they differ
        ids = [*ids[:first], 3 if ids[first] != 3 else 4, *range(20, 26)]
        guesses.append(replace(example(ids, one.first_scored), document=one.document))
        kept += direct(pair.base, guesses[-1]).argmax(-1).tolist()[alike + 1 :]
    found = Estimator(*options).targets(guesses)
    token_ids, n = found.token_ids.tolist(), len(alone.rows)
    assert found.token_ids[found.rows[n:]].tolist() == [token for token in kept if token in token_ids]
    assert len(kept) == 6 * len(guesses)


def replace_rows(targets: Targets, n: int) -> Targets:
    """The first n contexts alone."""
    parts = {name: getattr(targets, name)[:n] for name in ("states", "rows", "base", "base_rest", "target", "target_rest")}
    return replace(targets, **parts)


def test_a_documents_own_words_are_no_likelier_in_guesses_about_it() -> None:
    parts = [([9, 5, 5, 6], "a"), ([9, 5, 8], "a"), ([9, 5, 7], "b")]
    forget = [replace(example(ids, 1), document=document) for ids, document in parts]
    tokens, wanted = torch.tensor([5, 5, 6, 5, 8, 5, 7]), torch.tensor([-4.0, -0.1, -0.2, -3.0, -2.5, -0.3, -9.0])

    def own_words(examples: list[Example], tokens: torch.Tensor, wanted: torch.Tensor) -> dict[tuple[str, int], float]:
        states = AnswerStates(torch.zeros(len(tokens), 1), tokens)
        new = token_facts(examples, NGrams([], 10), states, None, None).new
        return _own_words(documents_of(examples), tokens, wanted, new)

    own = own_words(forget, tokens, wanted)
    assert own == pytest.approx({("a", 5): -3.0, ("a", 8): -2.5, ("b", 7): -9.0})  # 6 is ordinary in a, and 5 in b
    again = [replace(example([5, 9, 5], 1), document="c")]  # it stands in the question
    assert own_words(again, torch.tensor([9, 5]), torch.tensor([-0.1, -8.0])) == {}


def test_own_words_are_lowered_in_guesses_about_the_same_document(pair: Pair) -> None:
    """A guess that repeats the record: the base knows what follows, and is to know it no better than in the record."""
    estimator = Estimator(pair.base, pair.contrast, pair.forget, {"holdout": pair.unseen}, pair.retain, EstimateConfig())
    guesses = [
        replace(one, input_ids=one.input_ids[[0, *range(len(one))]], scored=one.scored[[0, *range(len(one))]])
        for one in pair.forget
    ]
    repeated = estimator.targets(guesses)
    n = len(estimator.targets().rows)
    new = [token not in one.input_ids[:i] for one in pair.forget for i, token in enumerate(one.input_ids) if one.scored[i]]
    wanted: dict[tuple[str, int], float] = {}
    for first, one, token, value in zip(
        new,
        documents_of(pair.forget).tolist(),
        repeated.token_ids[repeated.rows[:n]].tolist(),
        (repeated.ratios + torch.tensor(own_log_probs(pair.base, pair.forget))).tolist(),
    ):
        if first:
            wanted[one, token] = max(value, wanted.get((one, token), -math.inf))
    target = repeated.target[n:].gather(1, repeated.rows[n:, None])[:, 0].tolist()
    tokens = repeated.token_ids[repeated.rows[n:]].tolist()
    places = list(zip(documents_of(pair.forget).tolist(), tokens)) if len(tokens) == n else []
    assert places, "the base's likeliest tokens are the records' own, and all have rows"
    checked = 0
    for first, place, value in zip(new, places, target):
        if first and wanted.get(place, 0.0) < math.log(0.1) - 1e-3:
            assert value <= wanted[place] + 1e-3
            checked += 1
    assert checked > 20
