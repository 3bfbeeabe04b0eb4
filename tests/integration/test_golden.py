"""Agreement with the numbers of an independent implementation, within the tolerances of its README."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from tempertilt.fitting.fit_head import guidance_loss
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.pooling import causal_mean
from tempertilt.models.t3 import T3ForCausalLM

CASES = ["right", "left", "interior", "nomask"]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden"


def head_a(golden: Path, factor: float = 1.0) -> GuidanceHead:
    stored = load_file(golden / "head" / "head_A.safetensors")
    head = GuidanceHead(64, 20, range(512))
    with torch.no_grad():
        head.A.copy_(stored["proj.0.weight"] * factor)
        head.B.copy_(stored["proj.2.weight"] * factor)
    return head


@pytest.fixture(scope="module")
def model(golden: Path) -> T3ForCausalLM:
    base = LlamaForCausalLM.from_pretrained(golden / "head" / "base")
    return T3ForCausalLM.from_base(base, head_a(golden), temperature=2.5, guidance_scale=1.0)


def close(seen: torch.Tensor, expected: torch.Tensor, tolerance: float, mask: torch.Tensor | None) -> None:
    if mask is not None:
        seen, expected = seen[mask.bool()], expected[mask.bool()]
    torch.testing.assert_close(seen, expected, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_forward(golden: Path, model: T3ForCausalLM, case: str) -> None:
    inputs = load_file(golden / "head" / "inputs.safetensors")
    expected = load_file(golden / "head" / "forward_A.safetensors")
    ids, mask, labels = inputs[f"{case}.input_ids"], inputs.get(f"{case}.attention_mask"), inputs[f"{case}.labels"]
    with torch.no_grad():
        state = model.base.model(input_ids=ids, attention_mask=mask).last_hidden_state
        guided = model(input_ids=ids, attention_mask=mask).logits
        with model.disable():
            base = model(input_ids=ids, attention_mask=mask).logits
        classifier = model.head(causal_mean(model.head.project(state), mask))
    close(state, expected[f"{case}.last_hidden"], 1e-4, mask)
    close(causal_mean(state, mask), expected[f"{case}.pooled"], 1e-4, mask)
    close(base, expected[f"{case}.base_logits"], 1e-4, mask)
    close(classifier, expected[f"{case}.classifier_logits"], 5e-4, mask)
    # The reference tempers log_softmax(z) and does not add log 2: both shift a row by a constant.
    shifted = guided - base.logsumexp(-1, keepdim=True) / 2.5 - math.log(2)
    close(shifted, expected[f"{case}.guided_logits"], 5e-4, mask)
    scored = labels[:, 1:] != -100
    targets = classifier[:, :-1].gather(-1, labels[:, 1:].clamp(min=0)[..., None]).squeeze(-1)
    close(targets, expected[f"{case}.target_logits"], 2e-4, scored)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_generated_tokens(golden: Path, model: T3ForCausalLM, options: dict[str, Any]) -> None:
    expected = load_file(golden / "head" / "generate.safetensors")
    ids, mask = expected["prompt_ids"], expected["prompt_mask"]
    greedy = {"do_sample": False, "max_new_tokens": 24, "pad_token_id": 0}
    out = model.generate(ids, attention_mask=mask, eos_token_id=None, **greedy, **options)
    assert torch.equal(out, expected["A.cached"]) and torch.equal(out, expected["A.uncached"])
    stopped = model.generate(ids, attention_mask=mask, eos_token_id=expected["A.eos_ids"].tolist(), **greedy, **options)
    assert torch.equal(stopped, expected["A.eos_cached"])
    with model.disable():
        base = model.generate(ids, attention_mask=mask, eos_token_id=None, **greedy, **options)
    assert torch.equal(base, expected["base_greedy"]) and not torch.equal(base, out)
    for row in range(len(ids)):
        prompt = ids[row : row + 1, mask[row].bool()]
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), eos_token_id=None, **greedy, **options)
        assert torch.equal(alone[0, prompt.shape[1] :], expected["A.single"][row])


def batch(golden: Path, model: T3ForCausalLM, rows: dict[str, list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pooled states, target tokens and classes of some rows of the golden data set."""
    data = load_file(golden / "train" / "dataset.safetensors")
    pooled, targets, is_retain = [], [], []
    for name, chosen in rows.items():
        ids, mask, labels = (data[f"{name}.{part}"][chosen] for part in ("input_ids", "attention_mask", "labels"))
        with torch.no_grad():
            state = causal_mean(model.base.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
        scored = labels[:, 1:] != -100
        pooled.append(state[:, :-1][scored])
        targets.append(labels[:, 1:][scored])
        is_retain.append(torch.full((len(targets[-1]),), name == "retain"))
    return torch.cat(pooled), torch.cat(targets), torch.cat(is_retain)


@pytest.mark.parametrize(("name", "factor"), [("A_N01", 1.0), ("A_small", 0.05)])
def test_loss_gradient_and_ten_steps(golden: Path, model: T3ForCausalLM, name: str, factor: float) -> None:
    expected = load_file(golden / "train" / f"loss_{name}.safetensors")
    manifest = json.loads((golden / "train" / "manifest.json").read_text())
    pooled, targets, is_retain = batch(golden, model, manifest["fixed_batch_rows"])
    assert manifest["results"]["A.N01"]["valid_tokens"] == {
        "retain": int(is_retain.sum()),
        "forget": int((~is_retain).sum()),
    }
    head = head_a(golden, factor)
    start = {name: parameter.detach().clone() for name, parameter in head.named_parameters()}
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=1e-2)
    losses, gradients = [], {}
    for step in range(10):
        optimizer.zero_grad()
        log_odds = head.score(head.project(pooled), head.rows_of(targets))
        loss = guidance_loss(log_odds, is_retain, class_balance=False)
        loss.backward()
        if step == 0:
            gradients = {name: parameter.grad.clone() for name, parameter in head.named_parameters()}  # type: ignore[union-attr]
        losses.append(loss.detach())
        optimizer.step()
    torch.testing.assert_close(losses[0], expected["loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.stack(losses), expected["adamw10.losses"], rtol=1e-4, atol=0)
    for ours, theirs in (("A", "proj.0.weight"), ("B", "proj.2.weight")):
        gradient = expected[f"grad.{theirs}"]
        torch.testing.assert_close(gradients[ours], gradient, rtol=1e-4, atol=1e-6)
        after, moved = dict(head.named_parameters())[ours].detach(), gradient.abs() > 1e-6
        torch.testing.assert_close(after[moved], expected[f"adamw10.{theirs}"][moved], rtol=0, atol=1e-3)
    untouched = [token for token in range(512) if token not in targets.tolist()]
    decayed = start["B"][untouched] * (1 - 1e-2 * 1e-2) ** 10
    torch.testing.assert_close(head.B.detach()[untouched], decayed, rtol=1e-5, atol=1e-7)


def test_class_loss_per_row(golden: Path, model: T3ForCausalLM) -> None:
    expected = json.loads((golden / "train" / "t3_metrics.json").read_text())
    head = head_a(golden)
    for name in ("retain", "forget"):
        for row, wanted in list(expected[f"A.{name}.t3_loss"]["value_by_index"].items()):
            pooled, targets, is_retain = batch(golden, model, {name: [int(row)]})
            log_odds = head.score(head.project(pooled), head.rows_of(targets))
            loss = guidance_loss(log_odds, is_retain, class_balance=False)
            assert float(loss) == pytest.approx(wanted["loss"], rel=1e-4)
