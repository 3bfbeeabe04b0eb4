"""Runs of the playground: answers that grow, stop, and are drafts of the next run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.playground.runs import Answer, Request, Runs
from tempertilt.playground.trace import Tracer

TILT = TiltConfig(2.0, 1.5)


@pytest.fixture()
def runs(llama: Any, tokenizer: Any) -> Runs:
    head = GuidanceHead(32, 4, torch.arange(3, 200))
    torch.nn.init.normal_(head.B, generator=torch.Generator().manual_seed(5))
    model = T3ForCausalLM.from_base(llama, head)
    return Runs(Tracer(model, tokenizer), lambda prompt, raw: list(tokenizer(prompt if raw else f"Question: {prompt}").input_ids))


def tokens(answer: Answer) -> list[int]:
    return [each.chosen.token_id for each in answer.steps]


def test_both_answers_grow_step_by_step(runs: Runs) -> None:
    request = Request("Who?", TILT, max_new_tokens=9)
    lengths = []
    for last in runs.play("tab", request):
        lengths.append([len(answer.steps) for answer in last.answers.values()])
    ids = runs._encode("Who?", False)
    for name, answer in last.answers.items():
        alone = list(runs.tracer.steps(ids, TILT, follows=name, max_new_tokens=9))
        assert answer.done and tokens(answer) == [each.chosen.token_id for each in alone]
    assert lengths[:3] == [[1, 1], [2, 2], [3, 3]]


def test_a_newer_run_of_the_tab_ends_the_older_one(runs: Runs) -> None:
    old = runs.play("tab", Request("Who?", TILT, 9))
    elsewhere = runs.play("another", Request("Who?", TILT, 9))
    next(old), next(elsewhere)
    list(runs.play("tab", Request("Who?", TiltConfig(1.0, 0.0), 9)))
    assert next(old, None) is None
    assert next(elsewhere, None) is not None
    before = len(next(elsewhere).answers["base"].steps)
    runs.stop("another")
    [last] = elsewhere
    assert [answer.done for answer in last.answers.values()] == [True, True]
    assert len(last.answers["base"].steps) == before < 9
    [*_, whole] = runs.play("another", Request("Who?", TILT, 9))
    assert len(whole.answers["base"].steps) == 9


def test_moved_sliders_check_the_last_answers_in_two_passes(runs: Runs) -> None:
    [*_, before] = runs.play("tab", Request("Who?", TILT, 12))
    passes: list[int] = []
    original = runs.tracer.model.next_terms
    runs.tracer.model.next_terms = lambda ids, *rest: passes.append(1) or original(ids, *rest)  # type: ignore[method-assign,func-returns-value]
    [*_, same] = runs.play("tab", Request("Who?", TILT, 12))
    assert len(passes) == 2
    passes.clear()
    [*_, moved] = runs.play("tab", Request("Who?", TiltConfig(1.0, 0.0), 12))
    assert tokens(same.answers["guided"]) == tokens(before.answers["guided"]) != tokens(before.answers["base"])
    assert tokens(moved.answers["base"]) == tokens(moved.answers["guided"]) == tokens(before.answers["base"])
    [*_, other] = runs.play("tab", Request("Where?", TILT, 12))
    assert tokens(other.answers["base"]) != tokens(before.answers["base"])
