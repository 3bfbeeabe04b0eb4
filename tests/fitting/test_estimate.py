"""The estimated distributions against direct evaluations over the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from support.architectures import ARCHITECTURES, COMMON, VOCAB, build
from support.tiny import make_examples, make_llama, teach
from tempertilt.data.examples import Example
from tempertilt.errors import ModelError
from tempertilt.fitting.distributions import TAU, below_the_likeliest, matching_tau, with_token
from tempertilt.fitting.estimate import (
    CERTAIN,
    EstimateConfig,
    Estimator,
    Targets,
    _head_tokens,
    _own_words,
)
from tempertilt.fitting.neighbours import Neighbourhood, contexts_of, documents_of
from tempertilt.fitting.passes import AnswerStates, answer_states, check_output, columns_and_rest, likelihoods, output_logits
from tempertilt.fitting.score import NGrams, _facts, left_out_error, map_quantiles, token_facts


def example(ids: Sequence[int], scored_from: int) -> Example:
    return Example(np.array(ids, np.int32), np.arange(len(ids)) >= scored_from, "d", "s", 0)


def random_example(length: int = 14, seed: int = 0) -> Example:
    return example(np.random.default_rng(seed).integers(3, VOCAB, length).tolist(), 4)


def direct(model: Any, one: Example) -> torch.Tensor:
    """`(n_scored, V)` log-probabilities, float64, of an example's scored tokens: one pass, no batch."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(one.input_ids).long()[None]).logits[0].double()
    return logits.log_softmax(-1)[np.flatnonzero(one.scored) - 1]


# --- passes --------------------------------------------------------------------------------------------------------------

NAMES = ("llama", "gemma2", "gpt2", "granite", "cohere", "opt", "qwen2_moe", "falcon_h1")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_columns_and_rest_against_the_whole_vocabulary(name: str, temperature: float) -> None:
    model, one = build(name), random_example()
    expected = direct(model, one)
    states = answer_states(model, [one])
    assert states.tokens.tolist() == one.input_ids[4:].tolist()
    token_ids = torch.tensor([3, 7, 50, 110])
    log_z = output_logits(model, states.states).logsumexp(-1)
    others = [token for token in range(VOCAB) if token not in token_ids.tolist()]
    for known in (None, log_z):
        columns, rest = columns_and_rest(model, states.states, token_ids, temperature, known)
        torch.testing.assert_close(columns.double(), expected[:, token_ids], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(rest.double(), (expected[:, others] / temperature).logsumexp(-1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_logits_of_all_and_of_some_tokens(name: str) -> None:
    model, one = build(name), random_example()
    check_output(model, one)
    with torch.no_grad():
        own = model(input_ids=torch.from_numpy(one.input_ids).long()[None]).logits[0, 3:-1]
    states, some = answer_states(model, [one]).states, torch.tensor([5, 9, 70])
    torch.testing.assert_close(output_logits(model, states), own, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output_logits(model, states, some), own[:, some], atol=1e-5, rtol=1e-5)


def test_an_output_layer_that_is_tied_or_has_a_bias() -> None:
    tied = make_llama(tie_word_embeddings=True, vocab_size=VOCAB)
    biased = transformers.PhiForCausalLM(
        transformers.PhiConfig(**{key: value for key, value in COMMON.items() if key != "num_key_value_heads"})
    ).eval()
    torch.nn.init.normal_(biased.lm_head.bias)
    for model in (tied, biased):
        one, some = random_example(), torch.tensor([5, 9, 70])
        made = output_logits(model, answer_states(model, [one]).states, some)
        expected = direct(model, one)[:, some]
        torch.testing.assert_close((made - made[:, :1]).double(), expected - expected[:, :1], atol=1e-5, rtol=1e-5)


def test_an_unknown_change_of_the_logits_is_refused() -> None:
    model_class, config_class, options = ARCHITECTURES["falcon_h1"]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**options, lm_head_multiplier=0.3)
    with pytest.raises(ModelError, match=r"FalconH1ForCausalLM.*--objective classify"):
        check_output(getattr(transformers, model_class)(config).eval(), random_example())


def test_states_are_in_the_order_of_the_examples() -> None:
    model, examples = make_llama(), make_examples(7)
    states = answer_states(model, examples, batch_tokens=60)
    assert states.tokens.tolist() == [int(token) for one in examples for token in one.input_ids[one.scored]]
    expected = torch.cat([direct(model, one) for one in examples])
    torch.testing.assert_close(output_logits(model, states.states).double().log_softmax(-1), expected, atol=2e-5, rtol=1e-5)


# --- the parts of the estimate -------------------------------------------------------------------------------------------


def test_quantiles_are_mapped_to_quantiles() -> None:
    generator = torch.Generator().manual_seed(0)
    known_scores, known_values = torch.randn(500, generator=generator), 3 * torch.randn(500, generator=generator) - 1
    scores = torch.randn(50, generator=generator)
    mapped = map_quantiles(scores, known_scores, known_values)
    values = sorted(known_values.tolist())
    for score, value in zip(scores.tolist(), mapped.tolist()):
        below = sum(known <= score for known in known_scores.tolist())
        assert values[max(0, below - 1)] - 1e-6 <= value <= values[min(499, below)] + 1e-6
    order = scores.argsort()
    assert (mapped[order].diff() >= 0).all()
    ends = map_quantiles(torch.tensor([-9.0, 9.0]), known_scores, known_values)
    assert ends.tolist() == pytest.approx([values[0], values[-1]])


@dataclass
class Case:
    """Random distributions `(n, V)` of which K tokens have columns, and what is wanted of one of them."""

    whole: np.ndarray
    columns: torch.Tensor
    rest: torch.Tensor
    rows: torch.Tensor
    wanted: torch.Tensor


def make_case(n: int = 40, size: int = 30, k: int = 12, spread: float = 2.0) -> Case:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, size)) * spread
    whole = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rest = torch.tensor(np.log(whole[:, k:].sum(1)), dtype=torch.float32)
    columns = torch.tensor(np.log(whole[:, :k]), dtype=torch.float32)
    return Case(whole, columns, rest, torch.tensor(rng.integers(0, k, n)), torch.tensor(-rng.uniform(0.01, 8, n)).float())


@pytest.mark.parametrize("tau", [1.0, 1.7])
def test_a_distribution_with_its_token(tau: float) -> None:
    case = make_case()
    columns, rest = with_token(tau * case.columns, tau * case.rest, case.rows, case.wanted)
    torch.testing.assert_close(columns.exp().sum(-1) + rest.exp(), torch.ones(40))
    for i, row in enumerate(case.rows.tolist()):
        own = math.exp(float(case.wanted[i]))
        weights = {j: math.exp(tau * float(case.columns[i, j])) for j in range(12) if j != row}
        weights["rest"] = math.exp(tau * float(case.rest[i]))  # type: ignore[index]
        expected = {j: (1 - own) * weight / sum(weights.values()) for j, weight in weights.items()}
        made = {j: math.exp(float(columns[i, j])) for j in range(12)} | {"rest": math.exp(float(rest[i]))}
        assert made.pop(row) == pytest.approx(own, rel=1e-4)  # type: ignore[call-overload]
        assert made == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_an_unsure_token_is_put_below_the_likeliest() -> None:
    """Ten digits, of which the true one is to have a little more than the others: it would be the greedy answer."""
    columns = torch.tensor([[0.1] * 10 + [1e-6]] * 3).log()
    rows, rest = torch.tensor([4, 4, 4]), torch.full((3,), 1e-6).log()
    wanted = below_the_likeliest(columns, rest, rows, torch.tensor([0.3, 0.01, 0.6]).log())
    made, _ = with_token(columns, rest, rows, wanted)
    own, others = made[:, 4].exp(), made[:, [0, 1, 2, 3, 5, 6, 7, 8, 9]].exp().amax(1)
    assert float(own[0]) == pytest.approx(float(others[0]) / 2, rel=1e-4)  # lowered
    assert own[1:].tolist() == pytest.approx([0.01, 0.6])  # low enough; sure enough


def mean_entropy(case: Case, tau: float) -> float:
    """Of the distributions over the columns and the rest, by a loop."""
    total = 0.0
    for i, row in enumerate(case.rows.tolist()):
        own = math.exp(float(case.wanted[i]))
        weights = [math.exp(tau * float(case.columns[i, j])) for j in range(12) if j != row] + [
            math.exp(tau * float(case.rest[i]))
        ]
        parts = [own, *((1 - own) * weight / sum(weights) for weight in weights)]
        total -= sum(part * math.log(part) for part in parts)
    return total / len(case.rows)


def test_tau_is_where_the_mean_entropy_agrees() -> None:
    case = make_case()
    for tau in (0.8, 1.4, 2.5):
        entropy = mean_entropy(case, tau)
        made = matching_tau(case.columns, case.rest, case.rows, case.wanted, entropy)
        assert made == pytest.approx(tau, abs=2e-3)
    for entropy, end in ((9.0, TAU[0]), (0.0, TAU[1])):
        assert matching_tau(case.columns, case.rest, case.rows, case.wanted, entropy) == pytest.approx(end, abs=1e-3)


def test_the_heads_tokens() -> None:
    likeliest = torch.tensor([[1, 2], [2, 3], [3, 9], [4, 3], [2, 3], [8, 2], [8, 8], [8, 0]])  # 2, 3 and 8 come four times
    assert _head_tokens(torch.tensor([7, 1, 7]), likeliest, []).tolist() == [1, 2, 3, 7, 8]
    assert _head_tokens(torch.tensor([7, 1, 7]), likeliest, [8, 1]).tolist() == [2, 3, 7]
    assert _head_tokens(torch.tensor([7]), likeliest[:1], [7]).tolist() == [7]  # something is left to be tilted


# --- n-grams -------------------------------------------------------------------------------------------------------------


def witten_bell(sequences: list[list[int]], vocab_size: int, context: list[int], token: int) -> float:
    """P(token | context) by the recursion of Witten and Bell, from the longest context down."""
    if context is None:  # type: ignore[comparison-overlap]
        return 1 / vocab_size
    shorter = witten_bell(sequences, vocab_size, context[1:] if context else None, token)  # type: ignore[arg-type]
    n = len(context)
    after = [s[i + n] for s in sequences for i in range(len(s) - n) if s[i : i + n] == context]
    if not after:
        return shorter
    kinds = len(set(after))
    return (after.count(token) + kinds * shorter) / (len(after) + kinds)


def test_ngrams_against_witten_bell() -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 5, 30).tolist() for _ in range(4)]
    ngrams = NGrams(sequences, 7, order=3)
    for _ in range(100):
        context, token = rng.integers(0, 6, int(rng.integers(0, 5))).tolist(), int(rng.integers(0, 7))
        expected = witten_bell(sequences, 7, context[-2:], token)
        assert ngrams.log_prob(context, token) == pytest.approx(math.log(expected), abs=1e-12)
    for context in ([], [1], [1, 2], [6, 6]):
        assert sum(math.exp(ngrams.log_prob(context, token)) for token in range(7)) == pytest.approx(1)


def test_what_is_known_of_a_token_without_a_model() -> None:
    """A prompt 5 6 7 8 and an answer 5 6 7 9: after 5, and after 5 6, the prompt went on otherwise than after 5 6 7."""
    rows = _facts(NGrams([[5, 6, 7, 9]], 10), example([5, 6, 7, 8, 5, 6, 7, 9], 4), [5, 6, 7, 9])
    assert rows[:, 0].tolist() == [1.0] * 4 and rows[:, 7].tolist() == [0, 1, 2, 3]
    assert rows[:, 2].tolist() == [1, 1, 1, 0] and rows[:, 3].tolist() == [0, 0, 0, 0]  # in the prompt, in the answer
    assert rows[:, 4].tolist() == [0, 1, 2, 0] and rows[:, 5].tolist() == [0, 0, 0, 3]  # length where repeated, where not
    first = math.log((1 + 4 * 0.1) / 8)  # one of four tokens of four kinds
    assert rows[0, 1] == pytest.approx(first) and rows[0, 6] == 0 and rows[1, 6] == rows[1, 1]


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


def test_error_of_records_that_were_left_out() -> None:
    rng = np.random.default_rng(0)
    parts = [replace(example(range(6), 2), document=f"d{i // 2}") for i in range(12)]
    facts = torch.from_numpy(np.column_stack([np.ones(48), rng.normal(size=(48, 2))]))
    truth = torch.from_numpy(rng.normal(size=48)).float()
    fold = np.repeat([i // 2 % 4 for i in range(12)], 4)
    squares = []
    for number in range(4):
        solution = np.linalg.lstsq(facts.numpy()[fold != number], truth.double().numpy()[fold != number], rcond=None)[0]
        squares += list((facts.numpy()[fold == number] @ solution - truth.numpy()[fold == number]) ** 2)
    assert left_out_error(facts, truth, documents_of(parts)) == pytest.approx(np.mean(squares), rel=1e-4)
    assert left_out_error(facts, truth, np.array(["one"] * 48)) == math.inf


# --- guesses -------------------------------------------------------------------------------------------------------------


def guesses_of(pair: Pair) -> list[Example]:
    """Answers that say nothing of the records, each about the document of one of them."""
    rng = np.random.default_rng(5)
    made = []
    for one in pair.forget:
        prompt = one.input_ids[: one.first_scored].tolist()
        ids = [*prompt, *rng.integers(3, 320, 12).tolist()]
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
    used = [i for i, token in enumerate(likeliest.tolist()) if token in both.token_ids.tolist()]
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
    repeated = estimator.targets(pair.forget)
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
