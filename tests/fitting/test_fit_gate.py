"""The evidence gate against its definition, what it opens on, and the guided distribution behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from support.gates import gate_at
from support.tiny import make_llama
from tempertilt.errors import ConfigError, DataError
from tempertilt.fitting.exemplars import find_candidates
from tempertilt.fitting.fit_gate import (
    HIGHEST_THRESHOLD,
    GateConfig,
    GateFit,
    GateSettings,
    fit_gate,
    fit_reader,
    fitted_threshold,
    heard_threshold,
    raised_threshold,
)
from tempertilt.fitting.fit_gates import set_thresholds
from tempertilt.fitting.token_states import TokenStates
from tempertilt.guidance.gate import EvidenceGate, Gates, evidence_of
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


OPTIONS = GateSettings(size=D, whitening_rank=8, per_part=2, at_most=100, threshold=0.5)


@pytest.fixture()
def fit(names: torch.Tensor) -> GateFit:
    forget = TokenStates(records(10, names[0], 0), ["f"] * 10)
    kept = TokenStates(
        [r for i in range(1, 6) for r in records(6, names[i], i)], [f"r{i}" for i in range(1, 6) for _ in range(6)]
    )
    return fit_gate(forget, kept, OPTIONS)


def highest(gate: EvidenceGate, of: list[torch.Tensor]) -> list[float]:
    return [float(gate.evidence(states).max()) for states in of]


def test_it_opens_on_the_name_in_new_records_and_on_nothing_else(fit: GateFit, names: torch.Tensor) -> None:
    assert min(highest(fit.gate, records(20, names[0], 50))) > fit.gate.threshold
    assert max(highest(fit.gate, records(20, None, 51))) < fit.gate.threshold
    for unseen in (6, 7):
        assert max(highest(fit.gate, records(20, names[unseen], 60 + unseen))) < fit.gate.threshold
    assert len(fit.retain_evidence) == 30 and fit.summary()["opened"] == 0.0


def test_how_the_forget_documents_are_worded_is_not_what_they_are_about(names: torch.Tensor) -> None:
    phrase = torch.randn(D, generator=torch.Generator().manual_seed(8)) * 6  # in every forget record, in nothing that is kept

    def worded(name: torch.Tensor | None, seed: int) -> list[torch.Tensor]:
        found = records(8, name, seed)
        for states in found:
            states[7] = phrase + 0.1 * torch.randn(D, generator=torch.Generator().manual_seed(seed))
        return found

    kept = TokenStates(records(20, names[5], 3) + records(20, names[6], 4), ["a"] * 20 + ["b"] * 20)
    forget = TokenStates(worded(names[0], 0) + worded(names[1], 1), ["f"] * 8 + ["g"] * 8)
    options = OPTIONS._replace(per_part=1)
    gate = fit_gate(forget, kept, options).gate
    assert max(highest(gate, worded(None, 2))) < gate.threshold
    assert min(highest(gate, records(8, names[0], 5) + records(8, names[1], 6))) > gate.threshold
    one = fit_gate(TokenStates(forget.states[:8], forget.documents[:8]), kept, options).gate
    assert max(highest(one, worded(None, 2))) > one.threshold  # one document can't tell the two apart


def test_a_fitted_gate_is_the_one_that_will_be_read_again(fit: GateFit) -> None:
    stored = fit.gate.tensors("gate")
    again = EvidenceGate.from_tensors(stored, "gate", **fit.gate.settings)
    assert all(torch.equal(getattr(again, name), getattr(fit.gate, name)) for name in ("mean", "reader", "exemplars", "margins"))


def test_margins_and_left_out_evidence_by_a_loop(names: torch.Tensor) -> None:
    """The margin of every exemplar is its likest retained token; a retained text is judged without its fold of documents."""
    forget = TokenStates(records(4, names[0], 0), ["f"] * 4)
    documents = [f"r{i}" for i in range(1, 8) for _ in range(3)]  # in folds 0 1 2 3 4 0 1
    kept = TokenStates([r for i in range(1, 8) for r in records(3, names[i], i)], documents)
    found = fit_gate(forget, kept, OPTIONS)
    reader = fit_reader([forget, kept], 8, D)
    directions = [reader.directions(states) for states in kept.states]
    for exemplar, margin in zip(found.gate.exemplars, found.gate.margins):
        assert float(margin) == pytest.approx(max(float((rows @ exemplar).max()) for rows in directions), abs=0.02)
    look = torch.cat([reader.directions(states[::8]) for states in kept.states])
    candidates = []  # of each forget text the eight tokens that are least like what is looked at first
    for states in forget.states:
        tokens = list(reader.directions(states))
        candidates.append(sorted(tokens, key=lambda token: float((look @ token).max()))[:8])
    for i, rows in enumerate(directions):
        fold = i // 3 % 5
        others = torch.cat([other for j, other in enumerate(directions) if j // 3 % 5 != fold])
        special: list[tuple[float, torch.Tensor]] = []
        for tokens in candidates:
            margins = sorted(((float((others @ token).max()), token) for token in tokens), key=lambda pair: pair[0])
            special += [(margin, token) for margin, token in margins[: OPTIONS.per_part] if margin <= 0.9]
        kept_tokens: list[tuple[float, torch.Tensor]] = []  # of those that are nearly the same, the most special
        for margin, token in sorted(special, key=lambda pair: pair[0]):
            if all(float(other @ token) <= 0.9 for _, other in kept_tokens):
                kept_tokens.append((margin, token))
        evidence = max((float((rows @ token).max()) - margin) / (1 - margin) for margin, token in kept_tokens)
        assert found.retain_evidence[i] == found.prompt_evidence[i] == pytest.approx(evidence, abs=1e-4)
    assert len(found.retain_evidence) == 21 and np.ptp(found.retain_evidence) > 0.05


def test_a_retained_text_is_judged_without_its_document(names: torch.Tensor) -> None:
    """One retained document holds the forget records' own name: with it the name is nobody's, without it the gate opens there."""
    forget = TokenStates(records(6, names[0], 0), ["f"] * 6)
    kept = TokenStates(
        [r for i in range(1, 6) for r in records(3, names[0] if i == 3 else names[i], i)],
        [f"r{i}" for i in range(1, 6) for _ in range(3)],
    )
    evidence = fit_gate(forget, kept, OPTIONS).retain_evidence
    assert min(evidence[6:9]) > 0.8 > max([*evidence[:6], *evidence[9:]])


def test_a_text_without_a_document_is_in_every_margin_and_never_left_out(names: torch.Tensor) -> None:
    forget = TokenStates(records(6, names[0], 0), ["f"] * 6)
    states = [r for i in range(1, 6) for r in records(3, names[0] if i == 3 else names[i], i)]
    documents = [None if i == 3 else f"r{i}" for i in range(1, 6) for _ in range(3)]
    found = fit_gate(forget, TokenStates(states, documents), OPTIONS)
    assert np.isneginf(found.retain_evidence[6:9]).all() and np.isfinite(found.retain_evidence[[*range(6), *range(9, 15)]]).all()
    assert max(highest(found.gate, states[6:9])) < 0.05 and found.summary()["opened"] == 0.0
    assert not len(fit_gate(forget, TokenStates(states, [None] * 15), OPTIONS).retain_evidence)


def test_whitening_makes_all_directions_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(1, 6, D)
    states = torch.randn(4000, D, generator=generator) * scales + 3
    white = (states - (reader := fit_reader([TokenStates([states], ["a"])], D - 1, D)).mean) @ reader.matrix.T
    covariance = np.cov(white.numpy().T)
    np.testing.assert_allclose(covariance / covariance.trace() * D, np.eye(D), atol=2e-3)
    few = fit_reader([TokenStates([states], ["a"])], D - 1, 5)
    assert few.matrix.shape == (5, D)
    torch.testing.assert_close(few.directions(states).norm(dim=-1), torch.ones(4000))


def test_a_threshold_rises_until_few_enough_open() -> None:
    evidence = np.linspace(0, 1, 101, dtype=np.float32)
    assert raised_threshold(0.5, evidence[:0], 0.02) == 0.5
    assert raised_threshold(0.5, evidence[:40], 0.02) == 0.5
    raised = raised_threshold(0.5, evidence[:91], 0.02)
    assert 0.5 < raised < HIGHEST_THRESHOLD and (evidence[:91] > raised).sum() <= 0.02 * 91
    assert raised_threshold(0.5, np.ones(50, np.float32), 0.02) == HIGHEST_THRESHOLD


def test_a_threshold_falls_where_fewer_than_half_open() -> None:
    def evidence(*highest: float) -> np.ndarray:
        return np.array([*highest, *[0.1] * (100 - len(highest))], np.float32)

    assert fitted_threshold(0.9, 0.7, evidence(), 0.04) == 0.7
    assert fitted_threshold(0.9, 0.7, evidence(0.99, 0.99), 0.04) == 0.7
    assert fitted_threshold(0.9, 0.7, evidence(0.99, 0.99, 0.8), 0.04) == pytest.approx(0.8)
    assert fitted_threshold(0.9, 0.7, evidence(0.99, 0.99, 0.95, 0.95), 0.04) == 0.9
    assert fitted_threshold(0.9, 0.7, evidence(*[0.95] * 5), 0.04) == pytest.approx(0.95)
    assert fitted_threshold(0.9, 0.7, evidence()[:0], 0.04) == 0.9
    assert fitted_threshold(0.6, 0.7, evidence(), 0.04) == 0.6, "a lower one that was asked for"


def test_evidence_of_prompts_is_that_of_texts_that_end_with_them(names: torch.Tensor) -> None:
    forget = TokenStates(records(4, names[0], 0), ["f"] * 4)
    states = [rows for i in range(1, 6) for rows in records(3, names[i], i)]
    documents, prompts = [f"r{i}" for i in range(5) for _ in range(3)], [0, 3, 7] * 5
    found = fit_gate(forget, TokenStates(states, documents, prompts), OPTIONS)
    whole = fit_gate(forget, TokenStates(states, documents), OPTIONS)
    np.testing.assert_array_equal(found.retain_evidence, whole.retain_evidence)
    np.testing.assert_array_equal(found.prompt_evidence[::3], whole.retain_evidence[::3])  # there is no prompt: all counts
    assert (found.prompt_evidence <= found.retain_evidence).all() and (found.prompt_evidence < found.retain_evidence).any()
    longer = fit_gate(forget, TokenStates(states, documents, [len(rows) for rows in states]), OPTIONS)
    np.testing.assert_array_equal(longer.prompt_evidence, whole.retain_evidence)


def test_the_output_gate_rises_by_texts_that_come_near_alone(fit: GateFit) -> None:
    def fits(asked: list[float], said: list[float]) -> tuple[GateFit, GateFit]:
        gates = [gate_at(torch.eye(3), threshold=least, weak=0.6, sure=sure) for least, sure in ((0.9, None), (0.6, 0.75))]
        return tuple(
            GateFit(g, np.array(e, np.float32), np.array(e, np.float32), np.zeros(0, np.float32), 0.0)
            for g, e in zip(gates, (asked, said))
        )  # type: ignore[return-value]

    asked, said = fits([0.1] * 50, [0.8] * 50)
    set_thresholds(asked, said, 50, GateConfig(asked_least=0.9))
    assert (asked.gate.threshold, said.gate.threshold) == (0.9, 0.6)
    asked, said = fits([0.7] * 50 + [0.99], [0.8] * 50 + [1.0] * 9)
    set_thresholds(asked, said, 50, GateConfig(asked_least=0.9))
    assert asked.gate.threshold == 0.9 and said.gate.threshold == pytest.approx(0.8)
    assert said.gate.sure_threshold == pytest.approx(0.8), "retain records alone count, whether the question comes near or not"


def test_the_output_gate_is_sure_where_few_texts_come_as_near() -> None:
    for said, expected in (([0.2] * 99 + [0.9], 0.75), ([0.2] * 97 + [0.8, 0.9, 0.95], 0.9), ([-np.inf] * 50 + [0.7] * 9, 0.75)):
        gate = gate_at(torch.eye(3), threshold=0.6, sure=0.75)
        evidence, none = np.array(said, np.float32), np.zeros(0, np.float32)
        fit = GateFit(gate, evidence, evidence, none, 0.0)
        set_thresholds(GateFit(gate_at(torch.eye(3)), none, none, none, 0.0), fit, len(said), GateConfig())
        assert gate.sure_threshold == pytest.approx(expected)
    never = GateConfig(sure_threshold=1.0).said
    assert never.sure_threshold is None and GateConfig().said.sure_threshold == 0.75


def test_a_raised_threshold_still_hears_the_prompts() -> None:
    heard = np.array([0.5] * 5 + [0.92] * 95, np.float32)
    assert heard_threshold(0.97, 0.9, heard, 0.9) == pytest.approx(0.92)
    assert heard_threshold(0.97, 0.9, heard, 0.97) == 0.9, "not below the usual one"
    assert heard_threshold(0.91, 0.9, heard, 0.9) == 0.91, "not above what retain text asks for"
    assert heard_threshold(0.8, 0.9, heard, 0.9) == 0.8
    assert heard_threshold(0.97, 0.9, heard, 0.0) == heard_threshold(0.97, 0.9, heard[:0], 0.9) == 0.97


def test_prompts_are_heard_by_what_others_say(names: torch.Tensor) -> None:
    """Each prompt's evidence is that of a gate of the exemplars that are of other prompts and answers."""
    forget = TokenStates(records(6, names[0], 0) + records(6, names[1], 1), ["f"] * 6 + ["g"] * 6, [8] * 12)
    retain = TokenStates(records(30, None, 2), [f"r{i}" for i in range(30)])
    found = fit_gate(forget, retain, OPTIONS._replace(cover=True))
    assert len(found.heard) == 12
    candidates = find_candidates(forget, retain, found.gate.read, OPTIONS.per_part, cover=True)
    margins = torch.full((len(candidates.directions),), 0.1)
    rows = torch.arange(len(margins))
    direct = []
    for text in range(12):
        others = torch.from_numpy(candidates.parts != 2 * text + 1) & torch.tensor(
            [(t < 6) == (text < 6) for t in candidates.texts]
        )
        prompt = found.gate.read.directions(forget.states[text][:8])
        direct.append(float(evidence_of(prompt, candidates.directions[others], margins[others]).max()))
    prompts = np.unique(candidates.parts[candidates.parts % 2 == 1])
    np.testing.assert_allclose(candidates.heard_otherwise(rows, margins), [direct[part // 2] for part in prompts], atol=1e-4)
    assert not len(fit_gate(forget, retain, OPTIONS).heard)


def test_text_that_is_in_both_sets_can_not_be_told_apart(names: torch.Tensor) -> None:
    same = records(6, names[0], 0)
    with pytest.raises(DataError, match="--no-gate"):
        fit_gate(TokenStates(same, ["f"] * 6), TokenStates(same, ["r"] * 6), OPTIONS)


@pytest.mark.parametrize(
    "options",
    [
        {"gate_depth": 0.0},
        {"gate_depth": 1.0},
        {"max_asked": 0},
        {"asked_threshold": 1.0},
        {"said_threshold": 0.0},
        {"sure_threshold": 1.1},
        {"variants": -1},
    ],
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
    gates = Gates(1, gate_at(states[9][None], mean=states.mean(0), threshold=0.9))
    head = GuidanceHead(32, 4, torch.arange(3, 200))
    torch.nn.init.normal_(head.B, generator=torch.Generator().manual_seed(5))
    return T3ForCausalLM.from_base(llama, head, gates=gates, temperature=1.7, guidance_scale=0.8, pooling=pooling), tokens


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_shut_it_is_the_base_bit_for_bit_and_open_the_guided_distribution(pooling: str, tmp_path: object) -> None:
    model, tokens = gated(pooling)
    ids = torch.tensor([tokens])
    everywhere = T3ForCausalLM.from_base(model.base, model.head, temperature=1.7, guidance_scale=0.8, pooling=pooling)
    with torch.no_grad():
        out, base, open_distribution = (
            model(input_ids=ids).logits[0],
            model.base(input_ids=ids).logits[0],
            everywhere(input_ids=ids).logits[0],
        )
    assert torch.equal(out[:9], base[:9])
    torch.testing.assert_close(out[9:], open_distribution[9:], atol=1e-5, rtol=1e-5)  # and it stays open
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
