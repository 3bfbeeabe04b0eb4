"""Rates of answers against values counted by hand, with missing samples, ties and groups."""

from __future__ import annotations

import pytest

from tempertilt import metrics
from tempertilt.errors import DataError
from tempertilt.metrics import Sample


def said(*generations: str | None, question: str = "Q") -> list[Sample]:
    return [Sample(i, f"{question}{i}", "The Sea", generation=text) for i, text in enumerate(generations)]


def test_an_exact_match_is_told_without_case_and_space_around_it() -> None:
    result = metrics.exact_match(said("The Sea", " the sea\n", "The Sea.", "", None))
    assert result.per_sample == (1.0, 1.0, 0.0, 0.0, None)
    assert (result.value, result.n, result.n_missing) == (0.5, 4, 1)


def test_a_choice_is_the_likeliest_and_a_tie_goes_to_the_truth() -> None:
    scores = [(1.0, (2.0, 3.0)), (2.0, (1.0, 3.0)), (1.0, (1.0, 1.0)), (None, ()), (1.0, ())]
    samples = [Sample(i, "Q", nll=nll, perturbed_nll=wrong, group="ab"[i % 2]) for i, (nll, wrong) in enumerate(scores)]
    result = metrics.choice_accuracy(samples)
    assert result.per_sample == (1.0, 0.0, 1.0, None, None)
    assert result.details["by_group"] == {"a": [1.0, 2], "b": [0.0, 1]}
    before = [Sample(i, "Q", nll=3.0, perturbed_nll=(2.0, 1.0)) for i in range(5)]
    assert metrics.choice_changed(samples, before).per_sample == (1.0, 1.0, 1.0, None, None)


def test_an_unchanged_answer_is_the_same_letter_for_letter() -> None:
    result = metrics.unchanged(said("Yes.", "Yes", None, "No"), said("Yes.", "yes", "A", None)[::-1])
    assert result.per_sample == (1.0, 0.0, None, None)
    for other in (said("Yes."), said("Yes.", "Yes", None, "No", question="Another ")):
        with pytest.raises(DataError, match="of other questions"):
            metrics.unchanged(said("Yes.", "Yes", None, "No"), other)


def test_a_gate_is_open_above_zero() -> None:
    assert metrics.gate_open([Sample(i, gate=gate) for i, gate in enumerate((0.0, 1e-9, 1.0, None))]).per_sample == (
        0.0,
        1.0,
        1.0,
        None,
    )
    with pytest.raises(DataError, match="no gates"):
        metrics.gate_open(said("Yes."))


def test_what_was_known_counts_only_what_the_model_knew() -> None:
    before = said("The sea.", "No.", "the SEA", None)
    assert metrics.known(before).per_sample == (1.0, 0.0, 1.0, None)
    result = metrics.still_known(said("No.", "The Sea", "The Sea!", "The Sea"), before, higher_is_better=False)
    assert result.per_sample == (0.0, 1.0)
    with pytest.raises(DataError, match="can't be forgotten or kept"):
        metrics.still_known(said("The Sea"), said("No."), higher_is_better=False)
