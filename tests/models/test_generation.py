"""Batched generation against each prompt alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from support.tiny import make_llama
from tempertilt.models import generation
from tempertilt.models.base import load_base
from tempertilt.models.generation import generate_ids


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 320, (n,), generator=generator).tolist() for n in (4, 9, 6, 5, 7)]


def alone(model: Any, prompt: list[int], n: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == 2:
            break
    return tokens[len(prompt) :]


def test_the_output_layer_reads_one_block(tiny_dir: Path) -> None:
    base = load_base(str(tiny_dir))
    seen: list[tuple[torch.Size, bool]] = []
    layer = base.model.get_output_embeddings()
    layer.register_forward_pre_hook(lambda _m, args: seen.append((args[0].shape, args[0].is_contiguous())))
    found = generate_ids(base.model, base.tokenizer, prompts(), max_new_tokens=3)
    assert [rows[0] for rows in found] == [alone(base.model, prompt, 3) for prompt in prompts()]
    assert seen[0][0][:2] == (5, 1) and all(block for _, block in seen)


@pytest.mark.parametrize("first_round", [1, 3, 10, 64])
def test_greedy_in_rounds_is_greedy_alone(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, first_round: int
) -> None:
    monkeypatch.setattr(generation, "FIRST_ROUND", first_round)
    model = make_llama(seed=4)
    with torch.no_grad():
        model.lm_head.weight[2] *= 2  # some continuations end early
    found = generate_ids(model, tokenizer, prompts(), max_new_tokens=10)
    expected = [alone(model, prompt, 10) for prompt in prompts()]
    assert [row for [row] in found] == expected
    assert {len(row) for row in expected} != {10}, "some end early"
    assert any(len(row) == 10 for row in expected), "some do not"


def test_sampling_in_rounds_follows_the_law(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "FIRST_ROUND", 1)
    model = make_llama()
    torch.manual_seed(0)
    [rows] = generate_ids(model, tokenizer, [[5, 6, 7]], max_new_tokens=2, draws=3000)
    assert len(rows) == 3000 and {len(row) for row in rows} <= {1, 2}
    with torch.no_grad():
        first = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
        top = int(first.argmax())
        second = model(input_ids=torch.tensor([[5, 6, 7, top]])).logits[0, -1].softmax(-1)
    seen = torch.bincount(torch.tensor([row[0] for row in rows]), minlength=320) / 3000
    assert 0.5 * (seen - first).abs().sum() < 0.12
    after = [row[1] for row in rows if row[0] == top]
    share = torch.bincount(torch.tensor(after), minlength=320) / len(after)
    assert share.argmax() == second.argmax() or abs(share.max() - second.max()) < 0.05


class Small:
    """A model that runs out of memory above a number of rows."""

    def __init__(self, model: Any, rows: int) -> None:
        self.model, self.rows = model, rows
        self.device, self.generation_config = model.device, model.generation_config

    def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        if len(input_ids) > self.rows:
            raise torch.OutOfMemoryError("no")
        return self.model.generate(input_ids, **options)


def test_batches_halve_until_they_fit(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    expected = generate_ids(model, tokenizer, prompts(), max_new_tokens=6)
    assert generate_ids(Small(model, 2), tokenizer, prompts(), max_new_tokens=6) == expected
    with pytest.raises(torch.OutOfMemoryError):
        generate_ids(Small(model, 0), tokenizer, prompts(), max_new_tokens=6)


def test_a_hidden_token_is_not_attended_to(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    [[row]] = generate_ids(model, tokenizer, [[5, 9, 7, 8]], max_new_tokens=1, hidden_token_id=9)
    mask = torch.tensor([[1, 0, 1, 1]])
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=torch.tensor([[5, 9, 7, 8]]), attention_mask=mask, position_ids=positions).logits
    assert row == [int(logits[0, -1].argmax())]
