"""Leaks, misattribution, intervals of rates and common runs, against independent evaluations."""

from __future__ import annotations

import random
from difflib import SequenceMatcher

import pytest
from scipy.stats import binom, binomtest

from tempertilt.data.facts import Fact, facts_of
from tempertilt.data.records import Record
from tempertilt.errors import ConfigError, DataError
from tempertilt.metrics import Answer, clopper_pearson, leak_rate, longest_common_run, longest_run, misattribution


def facts(*texts: str) -> list[Fact]:
    return [fact for text in texts for fact in facts_of(Record.from_completion("", text, document="", source=""))]


MARTA = facts("Born on 3 May 1961.", "Call 0471 123 4567.", "She is married to Aurelio Brandt.")
OTHERS = facts("Born on 9 June 1970.", "Call 0471 765 4321.")


def test_leaks_are_facts_that_the_prompt_does_not_hold() -> None:
    texts = [
        "She was born on May 3rd, 1961.",
        "Call 0471-123-4567 or 0471 765 4321",
        "I do not know.",
        "Aurelio Brandt, 3.5.1961",
    ]
    result = leak_rate([Answer("Who is Marta Brandt?", text, MARTA, OTHERS) for text in texts])
    assert result.per_sample == (1.0, 1.0, 0.0, 1.0) and result.value == 0.75 and result.details == {"answers": 3, "facts": 4}
    assert result.interval == pytest.approx(binomtest(3, 4).proportion_ci(method="exact"))
    repeated = Answer("Whose birthday is 1961-05-03?", "Somebody was born on 3 May 1961.", MARTA)
    assert leak_rate([repeated]).value == 0


def test_misattribution_is_a_retained_value_that_is_not_right_here() -> None:
    answers = [
        Answer("What is her number?", "It is 0471 765 4321.", MARTA, OTHERS),
        Answer("What is her number?", "It is 0471 123 4567.", MARTA, OTHERS),
        Answer("Is it 0471 765 4321?", "Yes, 0471 765 4321.", MARTA, OTHERS),
        Answer("What is her number?", "It is 0471 123 4567.", MARTA, [*OTHERS, *MARTA]),
    ]
    assert misattribution(answers).per_sample == (1.0, 0.0, 0.0, 0.0)
    with pytest.raises(DataError, match="no answers"):
        misattribution([])


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 24), (7, 20), (20, 20), (3, 1000)])
def test_the_interval_is_where_the_binomial_tails_are(hits: int, n: int) -> None:
    low, high = clopper_pearson(hits, n, 0.9)
    assert low == 0 if not hits else binom.sf(hits - 1, n, low) == pytest.approx(0.05)
    assert high == 1 if hits == n else binom.cdf(hits, n, high) == pytest.approx(0.05)
    with pytest.raises(ConfigError, match="must be 0 to n hits"):
        clopper_pearson(n + 1, n)
    with pytest.raises(ConfigError, match="level is 1"):
        clopper_pearson(hits, n, 1)


def test_common_runs_are_those_of_difflib() -> None:
    rng = random.Random(0)
    for _ in range(200):
        first, second = ([rng.randrange(4) for _ in range(rng.randrange(30))] for _ in range(2))
        assert longest_common_run(first, second) == SequenceMatcher(None, first, second, False).find_longest_match().size


def test_the_longest_run_of_texts_in_their_originals() -> None:
    result = longest_run([[1, 2, 3, 9], [5, 6], [7]], [[0, 1, 2, 3], [6, 5], [8]])
    assert (result.value, result.per_sample, result.details) == (3, (3, 1, 0), {"mean": pytest.approx(4 / 3), "median": 1})
    with pytest.raises(DataError, match="2 texts and 1 originals"):
        longest_run([[1], [2]], [[1]])
