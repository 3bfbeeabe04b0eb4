"""The scale that code chooses, against a direct evaluation by whole passes of the model."""

from __future__ import annotations

import pytest
import torch

from support.gates import random_gates
from support.tiny import make_examples, make_llama
from tempertilt.data.examples import Example
from tempertilt.fitting.calibrate import LARGEST_SCALE, match_likelihood
from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.t3 import T3ForCausalLM


def unlearned(gated: bool, forget: list[Example], push: float = -3.0) -> T3ForCausalLM:
    """A model whose head tilts the tokens of the forget answers down, by a random amount in each context."""
    base = make_llama()
    tokens = sorted({int(token) for example in forget for token in example.input_ids[example.scored]})
    head = GuidanceHead(32, 4, tokens)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        head.A.normal_(std=0.2, generator=generator)
        head.B.normal_(generator=generator)
        head.A[0] = 0.05 * torch.sign(base.model.norm.weight)
        head.B[:, 0] = push
    options = {"temperature": 1.3, "guidance_scale": 1.0, "forget_prior": 0.6}
    return T3ForCausalLM.from_base(base, head, gates=random_gates(32) if gated else None, pooling="last", **options)


def mean_nll(model: torch.nn.Module, examples: list[Example]) -> float:
    """Mean over examples of the mean negative log-likelihood of their scored tokens: one pass for each, no batch."""
    values = []
    for example in examples:
        ids = torch.from_numpy(example.input_ids).long()
        with torch.no_grad():
            log_probs = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        scored = [t for t in range(len(ids)) if example.scored[t]]
        values.append(-sum(float(log_probs[t - 1, ids[t]]) for t in scored) / len(scored))
    return sum(values) / len(values)


@pytest.mark.parametrize("gated", [False, True])
def test_forget_answers_become_as_likely_as_holdout_answers(gated: bool) -> None:
    forget, holdout = make_examples(9, seed=1), make_examples(7, seed=2)
    model = unlearned(gated, forget)
    shifted = match_likelihood(model, forget, holdout)
    assert shifted.target == pytest.approx(mean_nll(model.base, holdout), abs=1e-4)
    assert shifted.before == pytest.approx(mean_nll(model.base, forget), abs=1e-4)
    model.guidance_scale = shifted.guidance_scale
    assert shifted.reached == pytest.approx(mean_nll(model, forget), abs=1e-4)
    low, high = (nll_at(model, forget, scale) for scale in (0.0, LARGEST_SCALE))
    if low < shifted.target < high:
        assert shifted.reached == pytest.approx(shifted.target, abs=2e-3) and 0 < shifted.guidance_scale < LARGEST_SCALE
    else:
        assert shifted.guidance_scale in (0.0, LARGEST_SCALE)


def nll_at(model: T3ForCausalLM, examples: list[Example], scale: float) -> float:
    before, model.guidance_scale = model.guidance_scale, scale
    value = mean_nll(model, examples)
    model.guidance_scale = before
    return value


def test_a_scale_in_between_is_found_by_its_own_likelihood() -> None:
    """Holdout answers that are as likely as the forget answers at scale 0.7: the scale found is 0.7."""
    forget = make_examples(9, seed=1)
    model = unlearned(False, forget)
    wanted = nll_at(model, forget, 0.7)
    holdout = nearest(model, make_examples(400, seed=5), wanted)
    target = mean_nll(model.base, holdout)
    found = match_likelihood(model, forget, holdout)
    assert nll_at(model, forget, found.guidance_scale) == pytest.approx(target, abs=2e-3)
    assert found.guidance_scale == pytest.approx(0.7, abs=0.1)


def nearest(model: T3ForCausalLM, examples: list[Example], wanted: float) -> list[Example]:
    return sorted(examples, key=lambda example: abs(mean_nll(model.base, [example]) - wanted))[:5]


def test_no_scale_that_does_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    forget = make_examples(5, seed=1)
    model = unlearned(False, forget, push=0.0)
    with torch.no_grad():
        model.head.B.zero_()
    holdout = [
        example for example in make_examples(40, seed=2) if mean_nll(model.base, [example]) > mean_nll(model.base, forget) + 0.2
    ]
    found = match_likelihood(model, forget, holdout[:3])
    assert found.guidance_scale == LARGEST_SCALE and "no guidance scale makes forget answers as likely" in caplog.text
