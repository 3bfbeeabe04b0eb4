"""Every metric against values worked out by hand or by an independent implementation."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, ks_2samp, norm
from sklearn.metrics import roc_auc_score

from tempertilt import metrics
from tempertilt.errors import ConfigError, DataError
from tempertilt.metrics import Draw, Sample
from tempertilt.metrics.result import RESAMPLES, SEED, bootstrap


def sample(index: int = 0, **fields: Any) -> Sample:
    return Sample(index=index, **fields)


def nll(probability: float) -> float:
    return -math.log(probability)


def three() -> list[Sample]:
    """P 0.5, 0.2, missing; wrong answers 0.1 and 0.4, 0.3, none; paraphrase 0.25, 0.6, none."""
    return [
        sample(0, nll=nll(0.5), paraphrase_nll=nll(0.25), perturbed_nll=(nll(0.1), nll(0.4))),
        sample(1, nll=nll(0.2), paraphrase_nll=nll(0.6), perturbed_nll=(nll(0.3),)),
        sample(2),
    ]


def test_probability() -> None:
    result = metrics.probability(three())
    assert (result.value, result.n, result.n_missing) == (pytest.approx(0.35), 2, 1)
    assert result.per_sample == (pytest.approx(0.5), pytest.approx(0.2), None)
    assert metrics.probability(three(), of="paraphrase").value == pytest.approx(0.425)
    assert metrics.probability(three(), of="perturbed").value == pytest.approx((0.25 + 0.3) / 2)
    assert metrics.normalised_probability(three()).value == pytest.approx((0.5 / 1.0 + 0.2 / 0.5) / 2)


def test_truth_ratio() -> None:
    geometric = [math.sqrt(0.1 * 0.4) / 0.25, 0.3 / 0.6]
    arithmetic = [0.25 / 0.25, 0.5]
    assert metrics.truth_ratios(three())[:2] == pytest.approx(geometric)
    assert metrics.truth_ratios(three(), "arithmetic")[:2] == pytest.approx(arithmetic)
    assert metrics.truth_ratios(three())[2] is None
    assert metrics.truth_ratio(three()).value == pytest.approx((0.8 + 0.5) / 2)
    assert metrics.truth_ratio(three(), "true_better").value == pytest.approx((0.2 + 0.5) / 2)
    assert metrics.truth_ratio(three(), "prob_mean").value == pytest.approx((0.25 / 0.45 + 0.6 / 0.9) / 2)
    above = [sample(nll=nll(0.1), perturbed_nll=(nll(0.5),))]  # R = 5, the answer itself where there is no paraphrase
    assert metrics.truth_ratio(above).value == pytest.approx(0.2)
    assert metrics.truth_ratio(above, "true_better").value == 0.0
    with pytest.raises(ConfigError, match="closer_to_1_better, true_better, prob_mean"):
        metrics.truth_ratio(above, "closest")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="geometric, arithmetic"):
        metrics.truth_ratio(above, mean="harmonic")  # type: ignore[arg-type]


def random_samples(n: int, shift: float, seed: int) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [
        sample(i, nll=2.0, paraphrase_nll=float(rng.uniform(1, 3)), perturbed_nll=tuple(rng.uniform(1, 3, 5) + shift))
        for i in range(n)
    ]


def test_forget_quality() -> None:
    ours, theirs = random_samples(80, 0.7, 0), random_samples(90, 0.0, 1)
    result = metrics.forget_quality({"forget": ours}, {"forget": theirs})
    ratios = [
        [math.exp(-np.mean(s.perturbed_nll)) / math.exp(-s.paraphrase_nll) for s in side]  # type: ignore[operator]
        for side in (ours, theirs)
    ]
    expected = ks_2samp(*ratios)
    assert result.value == pytest.approx(expected.pvalue, rel=1e-6) and result.details["statistic"] == expected.statistic
    inverted = ks_2samp(*(1 / np.array(side) for side in ratios))
    assert result.value == pytest.approx(inverted.pvalue)
    assert (result.n, result.n_missing, result.details["n_reference"]) == (80, 0, 90)
    assert result.interval is None, "resampled p-values lie below the one that is printed"
    assert metrics.forget_quality({"forget": ours}, {"forget": ours}).value == 1.0
    far = metrics.forget_quality({"forget": random_samples(40, 50.0, 0)}, {"forget": random_samples(40, -50.0, 1)})
    assert far.details["statistic"] == 1.0 and far.value == pytest.approx(far.details["floor"], rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.7, 50.0])
def test_ks_distance_lies_in_its_interval(shift: float) -> None:
    ours, theirs = random_samples(80, shift, 0), random_samples(90, 0.0, 1)
    result = metrics.ks_distance({"forget": [*ours, sample(80)]}, {"forget": theirs})
    ratios = [[math.exp(-np.mean(s.perturbed_nll) + (s.paraphrase_nll or 0)) for s in side] for side in (ours, theirs)]
    assert result.value == pytest.approx(ks_2samp(*ratios).statistic)
    assert (result.n, result.n_missing, result.details["n_reference"]) == (80, 1, 90)
    assert result.interval is not None and 0 <= result.interval[0] <= result.value <= result.interval[1] <= 1
    if shift == 50.0:
        assert result.value == 1.0
    else:
        kolmogorov = 1.358 * math.sqrt(1 / 80 + 1 / 90)  # asymptotic 95 % quantile of the largest deviation, where F = G
        assert result.interval[1] - result.value == pytest.approx(kolmogorov, rel=0.12)


@pytest.mark.integration
def test_the_interval_of_the_ks_distance_covers() -> None:
    rng = np.random.default_rng(4)
    true = 2 * norm.cdf(0.25) - 1  # two normal distributions half a standard deviation apart
    covered = 0
    for _ in range(60):
        sides = [
            {"forget": [sample(i, paraphrase_nll=0.0, perturbed_nll=(x,)) for i, x in enumerate(rng.normal(mean, 1, 60))]}
            for mean in (0.0, 0.5)
        ]
        low, high = metrics.ks_distance(*sides).interval or (1.0, 0.0)
        covered += low <= true <= high
    assert covered >= 55


@pytest.mark.parametrize(("n", "floor"), [(40, 1.86e-23), (200, 1.94e-119), (300, 1.48e-179), (400, 1.06e-239)])
def test_floor_of_forget_quality(n: int, floor: float) -> None:
    assert metrics.ks_floor(n, n) == pytest.approx(floor, rel=5e-3)


def test_a_missing_reference_says_how_to_make_one() -> None:
    with pytest.raises(DataError, match=r"t3 finetune(.|\n)*t3 eval(.|\n)*--reference"):
        metrics.forget_quality({"forget": three()}, None)
    with pytest.raises(DataError, match="the reference has no samples of the forget set"):
        metrics.forget_quality({"forget": three()}, {"retain": three()})
    with pytest.raises(DataError, match="none of 1 samples"):
        metrics.forget_quality({"forget": [sample()]}, {"forget": three()})


def test_answers_that_end_by_themselves() -> None:
    result = metrics.ended([sample(i, generation_ends=ends) for i, ends in enumerate((True, True, False, None))])
    assert result.value == pytest.approx(2 / 3) and (result.n, result.n_missing) == (3, 1)
    exact = binomtest(2, 3).proportion_ci(0.95, "exact")
    assert result.interval == pytest.approx((exact.low, exact.high))
    with pytest.raises(DataError, match="no sample tells whether its answer ended"):
        metrics.ended([sample()])


def test_perplexity_under_the_reference() -> None:
    ours = [sample(0, reference_perplexity=8.0), sample(1, reference_perplexity=2.0), sample(2)]
    result = metrics.reference_perplexity(ours)
    assert result.value == pytest.approx(4.0) and (result.n, result.n_missing, result.details) == (2, 1, {})
    assert result.interval == pytest.approx((2.0, 8.0)) and result.per_sample == (8.0, 2.0, None)
    plain = metrics.reference_perplexity(ours, [sample(base_perplexity=2.0)])
    assert plain.details == {"reference_own": pytest.approx(2.0), "ratio": pytest.approx(2.0)}
    both = metrics.reference_perplexity(ours, [sample(base_perplexity=2.0, reference_perplexity=1.6)])
    assert both.details["ratio"] == pytest.approx(2.5)
    with pytest.raises(DataError, match="--reference-model or --reference-peft-adapter"):
        metrics.reference_perplexity([sample(base_perplexity=2.0)])


def test_rouge() -> None:
    scores = metrics.rouge_scores("the cat sat on the mat", "the cats are on a mat")
    assert scores == {"rouge1_recall": 4 / 6, "rougeL_recall": 4 / 6, "rougeL_f1": pytest.approx(4 / 6)}
    assert metrics.rouge_scores("a b c d", "d c b a")["rougeL_recall"] == 0.25
    assert metrics.rouge_scores("a b", "")["rougeL_recall"] == 0.0
    samples = [sample(rougeL_recall=0.5, rouge1_recall=1.0), sample(rougeL_recall=0.0, rouge1_recall=0.5), sample()]
    assert (metrics.rouge(samples).value, metrics.rouge(samples).n_missing) == (0.25, 1)
    assert metrics.rouge(samples, "rouge1_recall").value == 0.75
    with pytest.raises(ConfigError, match="rouge1_recall, rougeL_recall, rougeL_f1"):
        metrics.rouge(samples, "rouge2")


def full_results() -> dict[str, list[Sample]]:
    """Two samples in each split: P .5 and .3; one wrong answer at .25; ROUGE 1 and .5."""
    of = [
        sample(0, nll=nll(0.5), perturbed_nll=(nll(0.25),), rougeL_recall=1.0),
        sample(1, nll=nll(0.3), perturbed_nll=(nll(0.25),), rougeL_recall=0.5),
    ]
    retain = [sample(s.index, nll=s.nll, paraphrase_nll=nll(0.4), perturbed_nll=s.perturbed_nll, rougeL_recall=0.25) for s in of]
    return {"retain": retain, "real_authors": of, "world_facts": of}


def test_model_utility() -> None:
    result = metrics.model_utility(full_results())
    normalised = (0.5 / 0.75 + 0.3 / 0.55) / 2
    ratio = (0.5 + (1 - 0.25 / 0.3)) / 2
    nine = [0.4, 0.25, 1 - 0.25 / 0.4, *[normalised, 0.75, ratio] * 2]
    assert result.value == pytest.approx(9 / sum(1 / part for part in nine))
    assert list(result.details.values()) == pytest.approx(nine)
    assert (result.n, result.n_missing) == (6, 0)
    assert result.interval is not None and result.interval[0] <= result.value <= result.interval[1]
    assert metrics.mu_rouge(full_results()).value == pytest.approx(3 / (1 / 0.25 + 1 / 0.75 + 1 / 0.75))
    with pytest.raises(DataError, match="none of world_facts"):
        metrics.model_utility({**full_results(), "world_facts": []})
    nothing = [sample(s.index, nll=s.nll, perturbed_nll=s.perturbed_nll, rougeL_recall=0.0) for s in full_results()["retain"]]
    assert metrics.model_utility({**full_results(), "retain": nothing}).value == 0.0


def hits(*pattern: int, ends: bool = True) -> Sample:
    return sample(hits=tuple(map(bool, pattern)), ends=ends)


def test_memorisation() -> None:
    of = [hits(1, 0, 1, 1, 0), hits(0, 0, 1), hits(1, 1, 1, ends=False), hits(1), sample()]
    # the last token counts only where it does not end the sequence: 3 of 4, 0 of 2, 3 of 3; one token alone is missing
    em, es = metrics.exact_memorisation(of), metrics.extraction_strength(of)
    assert em.per_sample == (0.75, 0.0, 1.0, None, None) and em.value == pytest.approx(1.75 / 3)
    assert es.per_sample == (0.5, 0.0, 1.0, None, None) and (es.n, es.n_missing) == (3, 2)
    assert metrics.extraction_strength([hits(0, 1, 1, ends=False)]).value == pytest.approx(2 / 3)


def members(n: int, shift: float, seed: int, **fields: Any) -> list[Sample]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        log_probs = tuple(-np.abs(rng.normal(1, 0.5, 10)) - shift)
        out.append(sample(i, nll=-float(np.mean(log_probs)), log_probs=log_probs, answer="word " * (i % 7 + 1),
                          standardised=tuple(np.array(log_probs) + 0.3), **fields))  # fmt: skip
    return out


@pytest.mark.parametrize("attack", ["loss", "zlib", "min_k", "min_k_plus_plus"])
def test_membership(attack: str) -> None:
    results = {"forget": members(30, 0.0, 0), "holdout": members(40, 0.3, 1)}

    def score(s: Sample) -> float:
        assert s.nll is not None
        if attack == "loss":
            return s.nll
        if attack == "zlib":
            return s.nll / len(zlib.compress(s.answer.encode()))
        values = s.log_probs if attack == "min_k" else s.standardised
        return -float(np.mean(sorted(values[:-1])[:3]))  # floor(0.4 * 9): the end of the sequence does not count

    expected = [score(s) for s in results["forget"] + results["holdout"]]
    result = metrics.membership(results, attack)
    assert result.value == pytest.approx(roc_auc_score([0] * 30 + [1] * 40, expected), abs=1e-12)
    assert result.n == 70 and result.details == {"n_forget": 30, "n_holdout": 40}
    assert metrics.attack_scores(results["forget"], attack) == pytest.approx(expected[:30])


def test_min_k_takes_at_least_one_token_and_rounds_down() -> None:
    tokens = (-1.0, -2.0, -3.0, -4.0, -5.0)
    of = [sample(log_probs=tokens[::4], ends=False), sample(log_probs=tokens, ends=False), sample(log_probs=tokens), sample()]
    assert metrics.attack_scores(of, "min_k") == [5.0, 4.5, 4.0, None]
    assert metrics.attack_scores(of, "min_k", k=1.0) == [3.0, 3.0, 2.5, None]


def test_ties_count_half() -> None:
    a, b = np.array([1.0, 2.0, 2.0]), np.array([2.0, 3.0])
    assert metrics.auc(a, b) == roc_auc_score([0, 0, 0, 1, 1], [*a, *b])


@pytest.mark.integration
def test_the_interval_of_an_auc_is_that_of_resampled_sides() -> None:
    results = {"forget": members(30, 0.0, 0), "holdout": members(40, 0.3, 1)}
    result = metrics.membership(results, "loss")
    sides = [np.array([each.nll for each in results[split]]) for split in ("forget", "holdout")]
    rng = np.random.default_rng(SEED)
    drawn = [[side[rng.integers(0, len(side), len(side))] for side in sides] for _ in range(RESAMPLES)]
    areas = [roc_auc_score([0] * 30 + [1] * 40, np.concatenate(pair)) for pair in drawn]
    assert result.interval == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=1e-12)


def test_reference_attack() -> None:
    ours = {"forget": members(5, 0.0, 0), "holdout": members(6, 0.0, 1)}
    theirs = {"forget": members(5, 1.0, 0), "holdout": members(6, 0.0, 1)}
    assert metrics.attack_scores(ours["forget"], "reference", reference=theirs["forget"]) == pytest.approx([-1.0] * 5)
    assert metrics.membership(ours, "reference", reference=theirs).value == 1.0
    with pytest.raises(DataError, match="--reference"):
        metrics.membership(ours, "reference")
    other = [Sample(index=s.index, answer="other", nll=s.nll) for s in theirs["forget"]]
    with pytest.raises(DataError, match="another answer"):
        metrics.attack_scores(ours["forget"], "reference", reference=other)
    with pytest.raises(DataError, match="none of holdout"):
        metrics.membership({"forget": ours["forget"]}, "loss")
    with pytest.raises(ConfigError, match="loss, zlib, min_k"):
        metrics.membership(ours, "guess")


def test_privleak() -> None:
    results = {"forget": members(30, 0.0, 0), "holdout": members(30, 0.3, 1)}
    value = metrics.membership(results, "min_k").value
    assert metrics.privleak(results).value == pytest.approx(100 * ((1 - value) - 0.5) / 0.5)
    reference = {"forget": members(30, 0.3, 2), "holdout": members(30, 0.3, 3)}
    theirs = metrics.membership(reference, "min_k").value
    assert metrics.privleak(results, reference).value == pytest.approx(100 * (theirs - value) / (1 - theirs))
    without_tokens = {"forget": [sample(nll=1.0)], "holdout": [sample(nll=1.0)]}
    assert metrics.privleak(results, without_tokens).details["auc_reference"] == 0.5


def drawn(recalls: Sequence[float], perplexities: Sequence[float | None]) -> Sample:
    return sample(draws=tuple(Draw("t", r, p) for r, p in zip(recalls, perplexities)), log_probs=(math.log(0.5), math.log(0.4)))


def test_sampling() -> None:
    of = [drawn([0.2, 0.8], [2.0, 8.0]), drawn([0.0, 0.4], [4.0, None]), sample(base_perplexity=3.0)]
    assert metrics.sampled_rouge(of).value == pytest.approx(0.35)
    assert metrics.best_of_n_rouge(of).value == pytest.approx(0.6)
    assert metrics.verbatim_leak(of).value == pytest.approx(0.2)
    assert metrics.verbatim_leak(of, 3).value == pytest.approx(1 - 0.8**3)
    assert metrics.verbatim_leak([sample(log_probs=(0.0,))], 5).value == 1.0
    assert metrics.base_perplexity(of, sampled=True).value == pytest.approx(math.sqrt(5.0 * 4.0))
    assert metrics.base_perplexity(of).value == pytest.approx(3.0)
    with pytest.raises(ConfigError, match="draws is 0"):
        metrics.verbatim_leak(of, 0)


def test_aggregates() -> None:
    tokens = {"hits": (True, False, True, True, True), "paraphrase_nll": nll(0.2), "perturbed_nll": (nll(0.1),)}
    results = {**full_results(), "forget": members(20, 0.0, 0, **tokens), "holdout": members(20, 0.4, 1)}
    reference = {"forget": members(20, 0.4, 2), "holdout": members(20, 0.4, 3)}
    memorised = [1 - 0.5, 1 - 0.75, 1 - 0.2, 1 - 0.2 / 0.3]
    memorisation = metrics.memorisation_score(results)
    assert memorisation.value == pytest.approx(4 / sum(1 / m for m in memorised))
    gaps = [
        1 - abs(metrics.membership(results, a).value - metrics.membership(reference, a).value)
        for a in ("loss", "zlib", "min_k", "min_k_plus_plus")
    ]
    privacy = metrics.privacy_score(results, reference)
    assert privacy.value == pytest.approx(4 / sum(1 / gap for gap in gaps))
    utility = metrics.model_utility(results).value
    assert metrics.utility_score(results).value == pytest.approx(utility)
    assert metrics.utility_score(results, results).value == pytest.approx(1.0)
    whole = metrics.aggregate_score(results, reference, results).value
    assert whole == pytest.approx(3 / (1 / memorisation.value + 1 / privacy.value + 1))


def test_intervals() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):  # a 95 % interval of a mean covers it about 95 times in 100
        of = [sample(i, nll=float(value)) for i, value in enumerate(rng.normal(1.0, 0.2, 60))]
        result = metrics.probability(of)
        assert result.interval is not None
        truth = math.exp(-1.0 + 0.02)
        covered += result.interval[0] <= truth <= result.interval[1]
        assert trial or result.interval == metrics.probability(of).interval, "deterministic"
    assert 180 <= covered <= 198
    low, high = bootstrap(lambda rows: rows.mean(1), rng.normal(0, 1, 400))
    assert low < 0.15 and high > -0.15 and 0.15 < high - low < 0.25 and RESAMPLES >= 1000


def test_missing_and_broken_values_are_never_figures() -> None:
    with pytest.raises(DataError, match="none of 2 samples"):
        metrics.probability([sample(), sample()])
    with pytest.raises(DataError, match="none of 0 samples"):
        metrics.rouge([])
    with pytest.raises(DataError, match="not finite"):
        metrics.probability([sample(nll=math.nan)])
    zero = metrics.probability([sample(nll=2000.0), sample()])
    assert (zero.value, zero.n, zero.n_missing) == (0.0, 1, 1)
