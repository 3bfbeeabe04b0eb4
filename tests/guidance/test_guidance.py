"""The guidance against direct evaluations: the formula with the head's log-odds, the gate's value, the pooled states."""

from __future__ import annotations

import pytest
import torch

from support.gates import random_gates
from tempertilt.errors import ConfigError
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.tilt import TiltConfig

D, V, IDS = 8, 12, [1, 5, 6, 11]


def make(pooling: str = "last", gated: bool = True, layer: int = 1) -> Guidance:
    torch.manual_seed(0)
    head = GuidanceHead(D, 3, IDS)
    with torch.no_grad():
        head.B.normal_()
    return Guidance(head, random_gates(D, layer=layer) if gated else None, TiltConfig(1.7, 0.6, 0.3), pooling)


def expected_guided(guidance: Guidance, logits: torch.Tensor, context: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Term by term, in float64."""
    tilt, out = guidance.tilt, logits.double()
    out = out / (1 + (tilt.temperature - 1) * g.double()[:, None])
    for column, token in enumerate(IDS):
        log_odds = (context.double() * guidance.head.B[column].double()).sum(-1)
        weight = -torch.log((1 - tilt.forget_prior) + tilt.forget_prior * torch.exp(-log_odds))
        out[:, token] += tilt.guidance_scale * g.double() * weight
    return out


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_guided_logits_are_the_formula(pooling: str) -> None:
    guidance = make(pooling)
    logits, last, g = torch.randn(5, V), torch.randn(5, D), torch.rand(5)
    pooled = torch.randn(5, 3) if pooling == "mean" else None
    context = pooled if pooled is not None else last @ guidance.head.A.T
    out = guidance.guide(logits, last, pooled, g)
    torch.testing.assert_close(out.double(), expected_guided(guidance, logits, context, g), atol=1e-5, rtol=1e-5)
    three = guidance.distributions(logits, guidance.log_odds(last, pooled), g)
    torch.testing.assert_close(three.guided, out.log_softmax(-1))
    torch.testing.assert_close(three.base, logits.log_softmax(-1))
    torch.testing.assert_close(three.tempered, (logits / (1 + 0.7 * g[:, None])).log_softmax(-1))
    assert torch.equal(guidance.guide(logits, last, pooled, g, TiltConfig(1.0, 0.0)), logits)


def test_what_is_observed_of_new_positions() -> None:
    last, lower = torch.randn(2, 5, D), torch.randn(2, 5, D)
    mean, single = make("mean"), make("last")
    torch.testing.assert_close(mean.observe(last, lower).projected, last @ mean.head.A.T)
    assert single.observe(last, lower).projected.shape == (2, 5, 0)
    gates, seen = mean.gates, mean.observe(last, lower)
    assert gates is not None and gates.said is not None and seen.evidence is not None and seen.events is not None
    torch.testing.assert_close(seen.evidence.asked, gates.asked.evidence(lower))
    torch.testing.assert_close(seen.evidence.said, gates.said.evidence(last))
    assert torch.equal(seen.events, gates.events(seen.evidence))
    assert make("last", gated=False).observe(last, None).events is None
    assert [make(p, g).needs_memory for p, g in (("mean", False), ("last", True), ("last", False))] == [True, True, False]


def test_what_does_not_fit_the_base_is_named() -> None:
    guidance = make()
    guidance.check_fits(D, V, 3)
    for arguments, message in (
        ((D + 1, V, 3), "hidden size 8"),
        ((D, 11, 3), "token ids up to 11"),
        ((D, V, 1), "after 1 layers"),
    ):
        with pytest.raises(ConfigError, match=message):
            guidance.check_fits(*arguments)
    with pytest.raises(ConfigError, match="pooling is 'max'; must be one of mean, last"):
        make("max")
