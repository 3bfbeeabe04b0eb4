"""Batched generation against each prompt alone: its stops, its decoding, and what the model can't take."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from support.architectures import random_head
from support.tiny import make_llama
from tempertilt.data.examples import ExampleConfig, build_examples, encode_question
from tempertilt.data.records import Record
from tempertilt.errors import DataError
from tempertilt.models import generation
from tempertilt.models.base import load_base
from tempertilt.models.generation import Decoding, generate, generate_ids, stop_ids
from tempertilt.models.limits import check_examples, check_text, room
from tempertilt.models.t3 import T3ForCausalLM


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


def test_sampling_in_rounds_follows_the_distribution(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

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


# --- what ends an answer ---------------------------------------------------------------------------------------------


def test_the_token_that_ends_an_answer_in_fitting_ends_it_in_decoding(tokenizer: PreTrainedTokenizerFast) -> None:
    """A base model with a chat template: its own eos and its tokenizer's are not what ends a turn."""
    tok = copy.deepcopy(tokenizer)
    tok.eos_token = "<|endoftext|>"
    end, eos = tok.convert_tokens_to_ids("<|im_end|>"), tok.convert_tokens_to_ids("<|endoftext|>")
    model = make_llama(eos_token_id=eos)
    record = Record.from_question("Who?", "Hina.", document="d", source="s")
    [example] = build_examples([record], tok, ExampleConfig())
    assert example.input_ids[-1] == end != tok.eos_token_id == model.generation_config.eos_token_id
    model.register_forward_hook(lambda _m, _i, out: out.logits.__setitem__((..., end), 1e4))  # ends every turn at once
    prompt = encode_question("Who?", tok, ExampleConfig())
    assert generate_ids(model, tok, [prompt], max_new_tokens=6) == [[[end]]]
    assert stop_ids(model, tok) == {end, eos}


# --- how it is decoded -----------------------------------------------------------------------------------------------

RECOMMENDED: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.9, "no_repeat_ngram_size": 2},
    "truncation": {"do_sample": True, "temperature": 0.3, "top_k": 3, "top_p": 0.5, "min_p": 0.3, "typical_p": 0.4},
    "cutoffs": {"epsilon_cutoff": 0.02, "eta_cutoff": 0.02, "top_h": 0.3},
    "tokens": {"suppress_tokens": list(range(3, 200)), "begin_suppress_tokens": [7], "bad_words_ids": [[9], [11]]},
    "forced": {"forced_bos_token_id": 5, "forced_eos_token_id": 2},
    "bias": {"sequence_bias": [[[5], 50.0]], "renormalize_logits": True, "remove_invalid_values": True},
    "length": {"min_length": 40, "min_new_tokens": 12, "max_length": 3, "exponential_decay_length_penalty": (1, 9.0)},
    "beams": {"num_beams": 3, "num_return_sequences": 3, "length_penalty": -2.0, "early_stopping": True},
    "watermark": {"watermarking_config": {"bias": 9.0}},
    "guidance": {"guidance_scale": 3.0},
    "stopping": {"stop_strings": ["e", "a"], "max_time": 1e-6},
    "outputs": {"return_dict_in_generate": True, "output_scores": True},
    "prompt": {"encoder_no_repeat_ngram_size": 1, "encoder_repetition_penalty": 9.0},
    "cache": {"cache_implementation": "static", "use_cache": False},
    "lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", list(RECOMMENDED))
def test_what_a_checkpoint_recommends_has_no_say(tokenizer: PreTrainedTokenizerFast, name: str, wrapped: bool) -> None:
    plain, recommending = make_llama(seed=4), make_llama(seed=4)
    for option, value in RECOMMENDED[name].items():
        setattr(recommending.generation_config, option, value)
    if wrapped:
        plain, recommending = (T3ForCausalLM.from_base(model, random_head(model)) for model in (plain, recommending))
    expected = [alone(plain, prompt, 10) for prompt in prompts()]
    assert [row for [row] in generate_ids(recommending, tokenizer, prompts(), max_new_tokens=10)] == expected
    drawn = []
    for model in (plain, recommending):
        torch.manual_seed(3)
        drawn.append(generate_ids(model, tokenizer, prompts()[:1], max_new_tokens=2, draws=200))
    assert drawn[0] == drawn[1] and len({row[0] for row in drawn[1][0]}) > 30


def test_draws_are_truncated_only_where_asked(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    torch.manual_seed(0)
    [rows] = generate(model, tokenizer, prompts()[:1], Decoding(1, do_sample=True, top_k=2, num_return_sequences=100))
    best = model(input_ids=torch.tensor(prompts()[:1])).logits[0, -1].topk(2).indices.tolist()
    assert {row[0] for row in rows} == set(best)


# --- what the model can't take ---------------------------------------------------------------------------------------


def gpt2(n_positions: int = 24) -> Any:
    """Learned positions: there is no embedding for the position after the last."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=320, n_positions=n_positions, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("decoding", [Decoding(12), Decoding(100), Decoding(12, num_beams=2, num_return_sequences=2)])
def test_answers_are_cut_where_positions_end(tokenizer: PreTrainedTokenizerFast, decoding: Decoding) -> None:
    """In one batch, each prompt at its own place."""
    model = gpt2()
    with torch.no_grad():
        model.lm_head.weight[2] = 0.0  # never a stop
    chosen = [list(range(3, 3 + n)) for n in (4, 23, 16, 20, 10)]
    answers = generate(model, tokenizer, chosen, decoding)
    assert [{len(row) for row in rows} for rows in answers] == [{min(decoding.max_new_tokens, 24 - len(p))} for p in chosen]
    if decoding.num_beams == 1:
        assert [row for [row] in answers] == [alone(model, p, min(decoding.max_new_tokens, 24 - len(p))) for p in chosen]


def test_prompts_beyond_the_positions_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = gpt2()
    assert [room(model, n) for n in (1, 23, 24, 30)] == [23, 1, 0, 0]
    for n in (24, 30):
        with pytest.raises(DataError, match=f"^the prompt has {n} tokens, and the model has positions for 24, its"):
            generate_ids(model, tokenizer, [[5] * n], max_new_tokens=1)
    with pytest.raises(DataError, match=r"^prompt 2 has 24 tokens"):
        generate_ids(model, tokenizer, [[5] * 3, [5] * 24], max_new_tokens=1)
    with pytest.raises(DataError, match=r"^the prompt has no tokens"):
        generate_ids(model, tokenizer, [[]], max_new_tokens=1)


def test_tokens_without_an_embedding_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tok = copy.deepcopy(tokenizer)
    tok.add_special_tokens({"extra_special_tokens": ["<|tool|>"]})
    tok.add_tokens([AddedToken("Karachi")])
    model = make_llama()
    tool, word = tok.convert_tokens_to_ids(["<|tool|>", "Karachi"])
    for strange, shown in ((tool, "320 ('<|tool|>')"), (word, "321 ('Karachi')"), (-1, "-1"), (5000, "5000")):
        message = f"prompt 2: the model has no embedding for token {shown}, only 320 rows"
        with pytest.raises(DataError, match=re.escape(message)):
            generate_ids(model, tok, [[5], [6, strange]], max_new_tokens=1)
    record = Record.from_question("Where?", "In Karachi.", document="d", source="f.jsonl:3")
    with pytest.raises(DataError, match=r"^f\.jsonl:3: the model has no embedding for token 321 \('Karachi'\)"):
        check_examples(model, tok, [record], build_examples([record], tok, ExampleConfig()))
    with pytest.raises(DataError, match=r"^it: the model has no embedding for token 320"):
        check_text(model, tok, "say <|tool|>", "it")
    check_text(model, tok, "say tool", "it")


def test_a_padding_token_without_an_embedding_is_not_used(tokenizer: PreTrainedTokenizerFast) -> None:
    tok = copy.deepcopy(tokenizer)
    tok.add_special_tokens({"pad_token": "<pad>"})
    model = make_llama()
    assert tok.pad_token_id == 320
    answers = generate_ids(model, tok, prompts(), max_new_tokens=5)
    assert [row for [row] in answers] == [alone(model, prompt, 5) for prompt in prompts()]
