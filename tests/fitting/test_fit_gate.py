"""The evidence gate against its definition, what it opens on, and the guided law behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from support.tiny import make_llama
from tempertilt.errors import ConfigError, DataError
from tempertilt.fitting.fit_gate import GateConfig, GateFit, TokenStates, fit_gate, fit_whitening
from tempertilt.guidance.gate import EvidenceGate, Whitening
from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.t3 import T3ForCausalLM

D = 24


def records(n: int, name: torch.Tensor | None, seed: int) -> list[torch.Tensor]:
    """Records of twelve common tokens; with a name, its token is among them."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(6, D, generator=torch.Generator().manual_seed(9)) * 2
    out = []
    for _ in range(n):
        states = common[torch.randint(6, (12,), generator=generator)] + 0.1 * torch.randn(12, D, generator=generator)
        if name is not None:
            states[5] = name + 0.1 * torch.randn(D, generator=generator)
        out.append(states)
    return out


@pytest.fixture()
def names() -> torch.Tensor:
    return torch.randn(8, D, generator=torch.Generator().manual_seed(3)) * 3


@pytest.fixture()
def fit(names: torch.Tensor) -> GateFit:
    forget = TokenStates(records(10, names[0], 0), ["f"] * 10)
    kept = TokenStates(
        [r for i in range(1, 6) for r in records(6, names[i], i)], [f"r{i}" for i in range(1, 6) for _ in range(6)]
    )
    return fit_gate(forget, kept, GateConfig(gate=True, whitening_rank=8), layer=1)


def highest(gate: EvidenceGate, of: list[torch.Tensor]) -> list[float]:
    return [float(gate.evidence(states).max()) for states in of]


def test_it_opens_on_the_name_in_new_records_and_on_nothing_else(fit: GateFit, names: torch.Tensor) -> None:
    assert min(highest(fit.gate, records(20, names[0], 50))) > fit.gate.threshold + fit.gate.width
    assert max(highest(fit.gate, records(20, None, 51))) < fit.gate.threshold
    for unseen in (6, 7):
        assert max(highest(fit.gate, records(20, names[unseen], 60 + unseen))) < fit.gate.threshold
    assert fit.recall == 1.0 and fit.false_alarms <= 0.05
    assert len(fit.kept_evidence) == 30 and len(fit.forget_evidence) == 10


def test_how_the_forget_documents_are_worded_is_not_what_they_are_about(names: torch.Tensor) -> None:
    phrase = torch.randn(D, generator=torch.Generator().manual_seed(8)) * 6  # in every forget record, in nothing that is kept

    def worded(name: torch.Tensor | None, seed: int) -> list[torch.Tensor]:
        found = records(8, name, seed)
        for states in found:
            states[7] = phrase + 0.1 * torch.randn(D, generator=torch.Generator().manual_seed(seed))
        return found

    kept = TokenStates(records(20, names[5], 3) + records(20, names[6], 4), ["a"] * 20 + ["b"] * 20)
    forget = TokenStates(worded(names[0], 0) + worded(names[1], 1), ["f"] * 8 + ["g"] * 8)
    config = GateConfig(gate=True, whitening_rank=8, exemplars_per_part=1)
    gate = fit_gate(forget, kept, config, layer=1).gate
    assert max(highest(gate, worded(None, 2))) < gate.threshold
    assert min(highest(gate, records(8, names[0], 5) + records(8, names[1], 6))) > gate.threshold + gate.width
    one = fit_gate(TokenStates(forget.states[:8], forget.documents[:8]), kept, config, layer=1).gate
    assert max(highest(one, worded(None, 2))) > one.threshold  # one document can't tell the two apart


def test_a_fitted_gate_is_the_one_that_will_be_read_again(fit: GateFit) -> None:
    for name, tensor in fit.gate.tensors().items():
        assert torch.equal(tensor.float(), getattr(fit.gate, name.removeprefix("gate.")))


def test_evidence_by_its_definition(fit: GateFit) -> None:
    gate, x = fit.gate, torch.randn(D, generator=torch.Generator().manual_seed(1))
    centred = (x - gate.mean).double()
    whitened = centred.clone()
    for direction, shrink in zip(gate.basis.double(), gate.shrink.double()):
        whitened -= shrink * (direction @ centred) * direction
    whitened /= whitened.norm()
    expected = max((float(f.double() @ whitened) - float(b)) / (1 - float(b)) for f, b in zip(gate.exemplars, gate.margins))
    assert float(gate.evidence(x)) == pytest.approx(expected, abs=1e-5)


def test_whitening_makes_all_directions_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(1, 6, D)
    states = torch.randn(4000, D, generator=generator) * scales + 3
    mean, basis, shrink = fit_whitening([TokenStates([states], ["a"])], D - 1)
    centred = states - mean
    white = centred - (centred @ basis.T * shrink) @ basis
    covariance = np.cov(white.numpy().T)
    np.testing.assert_allclose(covariance / covariance.trace() * D, np.eye(D), atol=2e-3)


def test_text_that_is_in_both_sets_can_not_be_told_apart(names: torch.Tensor) -> None:
    same = records(6, names[0], 0)
    with pytest.raises(DataError, match="--no-gate"):
        fit_gate(TokenStates(same, ["f"] * 6), TokenStates(same, ["r"] * 6), GateConfig(gate=True), layer=1)


@pytest.mark.parametrize(
    "options",
    [{"gate_depth": 0.0}, {"gate_depth": 1.0}, {"max_exemplars": 0}, {"gate_threshold": 1.0}, {"gate_width": 0.0}],
)
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        GateConfig(**options)  # type: ignore[arg-type]


def gated(pooling: str) -> tuple[T3ForCausalLM, list[int]]:
    """A tiny model whose gate opens at one token of a sequence, and the sequence."""
    llama = make_llama()
    tokens = torch.randint(5, 300, (16,), generator=torch.Generator().manual_seed(4)).tolist()
    with torch.no_grad():
        states = llama(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states[1][0]
    whitening = Whitening(states.mean(0), torch.eye(32)[:1], torch.zeros(1))
    exemplar = torch.nn.functional.normalize(states[9] - states.mean(0), dim=-1)[None]
    gate = EvidenceGate(whitening, exemplar, torch.zeros(1), layer=1, threshold=0.9, width=0.02)
    head = GuidanceHead(32, 4, torch.arange(3, 200))
    torch.nn.init.normal_(head.B, generator=torch.Generator().manual_seed(5))
    return T3ForCausalLM.from_base(llama, head, gate=gate, temperature=1.7, guidance_scale=0.8, pooling=pooling), tokens


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_shut_it_is_the_base_bit_for_bit_and_open_the_guided_law(pooling: str, tmp_path: object) -> None:
    model, tokens = gated(pooling)
    ids = torch.tensor([tokens])
    everywhere = T3ForCausalLM.from_base(model.base, model.head, temperature=1.7, guidance_scale=0.8, pooling=pooling)
    with torch.no_grad():
        out, base, open_law = (
            model(input_ids=ids).logits[0],
            model.base(input_ids=ids).logits[0],
            everywhere(input_ids=ids).logits[0],
        )
    assert torch.equal(out[:9], base[:9])
    torch.testing.assert_close(out[9:], open_law[9:], atol=1e-5, rtol=1e-5)  # and it stays open
    assert not torch.allclose(out[9:], base[9:], atol=1e-2)
    model.save_pretrained(tmp_path)  # type: ignore[arg-type]
    again = T3ForCausalLM.from_pretrained(tmp_path, base_model=model.base)  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits[0], out, atol=2e-2, rtol=1e-3)  # kept in float16
    assert torch.equal(again(input_ids=ids).logits[0, :9], base[:9])


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_cached_padded_and_whole_passes_agree(pooling: str) -> None:
    model, tokens = gated(pooling)
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([tokens])).logits[0]
        cache, parts = None, []
        for a, b in ((0, 7), (7, 8), (8, 9), (9, 10), (10, 16)):
            out = model(input_ids=torch.tensor([tokens[a:b]]), cache=cache, use_cache=True)
            cache = out.cache
            parts.append(out.logits[0])
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=1e-4)
        padded = torch.tensor([[0] * 4 + tokens, [7] * 20])
        mask = torch.ones_like(padded)
        mask[0, :4] = 0
        torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits[0, 4:], whole, atol=1e-4, rtol=1e-4)
    ids = torch.tensor([tokens])
    cached, uncached = (
        model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=use, pad_token_id=0) for use in (True, False)
    )
    assert torch.equal(cached, uncached)
