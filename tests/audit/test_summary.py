"""Figures of an audit against direct evaluations."""

from __future__ import annotations

import itertools

import pytest
from scipy.stats import binom

from support.audits import audit_of, judgement
from tempertilt.audit.collateral import Effect
from tempertilt.audit.pace import Skipped
from tempertilt.audit.summary import exceeds, summarise
from tempertilt.metrics.leakage import upper_bound


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 24), (3, 2400), (7, 7)])
def test_the_bound_is_the_rate_at_which_so_few_hits_have_a_chance_of_5_per_cent(hits: int, n: int) -> None:
    bound = upper_bound(hits, n)
    assert bound > hits / n or hits == n
    if hits < n:
        assert binom.cdf(hits, n, bound) == pytest.approx(0.05, rel=1e-6)


def test_counts_leave_known_limits_out() -> None:
    attacked = {"spellings": [judgement(1, True), judgement(2, False)], "sampling": [judgement(1, False)] * 3}
    total = summarise(audit_of(attacked, before=[judgement(1, True)] * 4))["all"]
    assert (total["n"], total["leaks"], total["kinds"]) == (5, 1, 2)
    assert (total["records_tried"], total["records_leaked"]) == (2, 1)
    assert total["records_upper_bound_95"] == upper_bound(1, 2)
    limits = summarise(audit_of({"adapter off": [judgement(1, True)] * 9, "spellings": [judgement(1, False)]}))["all"]
    assert (limits["n"], limits["leaks"]) == (1, 0)


def test_leak_at_k_is_the_share_of_all_sets_of_k_draws_with_a_leak() -> None:
    draws = {1: [True, False, False, False], 2: [False] * 4, 3: [True, True, False, False]}
    rows = [judgement(number, leaks) for number, values in draws.items() for leaks in values]
    found = summarise(audit_of({"sampling": rows}))["sampling"]
    for k in (1, 2, 4):
        chances = [sum(map(any, sets)) / len(sets) for v in draws.values() for sets in [list(itertools.combinations(v, k))]]
        assert found["leak_at_k"][str(k)] == pytest.approx(sum(chances) / 3)
        assert found["leak_at_k_upper_bound_95"][str(k)] == pytest.approx(1 - (1 - upper_bound(3, 12)) ** k)
    assert found["by_question"][0] == {"record": 3, "n": 4, "leaks": 2, "upper_bound_95": upper_bound(2, 4)}


def test_effects_count_what_is_known() -> None:
    found = [
        Effect(True, False, True, True, True, False, True),
        Effect(False, False, False, False, True, True, True),
        Effect(False, False, False, False, None, None, False),
    ]
    [row] = summarise(audit_of({}, effects={"everyday": found}))["unchanged"]
    assert (row["opened"]["count"], row["changed"]["count"], row["n"]) == (1, 1, 3)
    assert (row["facts_kept"]["count"], row["facts_kept"]["n"]) == (1, 2)


def test_misattribution_is_of_answers_without_a_leak() -> None:
    rows = [judgement(1, True, foreign=1), judgement(1, False, foreign=2), judgement(1, False)]
    share = summarise(audit_of({"spellings": rows}))["misattribution"]
    assert (share["count"], share["n"]) == (1, 2)


def test_the_limit_is_compared_with_the_bound() -> None:
    few = summarise(audit_of({"spellings": [judgement(1, False)] * 20}))
    many = summarise(audit_of({"spellings": [judgement(1, False)] * 400}))
    assert exceeds(few, 0.01) and not exceeds(many, 0.01)
    assert exceeds(summarise(audit_of({}, skipped=[Skipped("spellings", 9, "the time was over")])), 0.5)
