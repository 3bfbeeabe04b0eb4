"""Runs of an original's tokens, against difflib."""

from __future__ import annotations

import random
from difflib import SequenceMatcher

import pytest

from tempertilt.errors import DataError
from tempertilt.metrics import longest_common_run, longest_run


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
