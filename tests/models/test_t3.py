"""`T3ForCausalLM` under everything that `generate` does, against the guided distribution by its definition."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    pipeline,
)
from transformers.cache_utils import DynamicCache

from support.oracle import Oracle
from support.tiny import make_llama
from tempertilt.errors import AdapterError, ConfigError, TemperTiltError
from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.base import fingerprint
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.storage import file_sha256

VOCAB = 320
TEMPERATURE, SCALE = 1.6, 0.7
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 2, "eos_token_id": None}


def make_head(seed: int = 3, scale: float = 1.5) -> GuidanceHead:
    head = GuidanceHead(32, 4, range(0, VOCAB, 3))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.A.normal_(std=scale, generator=generator)
        head.B.normal_(std=scale, generator=generator)
    return head


@pytest.fixture()
def model(llama: LlamaForCausalLM) -> T3ForCausalLM:
    return T3ForCausalLM.from_base(llama, make_head(), temperature=TEMPERATURE, guidance_scale=SCALE)


@pytest.fixture()
def oracle(model: T3ForCausalLM) -> Oracle:
    return Oracle(model.base, model.head, TEMPERATURE, SCALE)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def log_distribution(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().log_softmax(-1)


# --- forward --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_changes_nothing(model: T3ForCausalLM, oracle: Oracle, side: str) -> None:
    prompts = [prompt(5, 1), prompt(9, 2), prompt(7, 3)]
    before = {"left": lambda n: 12 - n, "right": lambda n: 0, "both": lambda n: (12 - n) // 2}[side]
    ids, mask = torch.full((3, 12), 2), torch.zeros(3, 12, dtype=torch.long)
    for row, tokens in enumerate(prompts):
        start = before(len(tokens))
        ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        mask[row, start : start + len(tokens)] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        distribution = log_distribution(model(input_ids=ids, attention_mask=mask, position_ids=positions).logits)
    for row, tokens in enumerate(prompts):
        torch.testing.assert_close(distribution[row][mask[row].bool()], oracle.distribution(tokens), atol=1e-4, rtol=1e-4)


def test_every_form_of_logits_to_keep(model: T3ForCausalLM) -> None:
    ids = torch.tensor([prompt(8, 1), prompt(8, 2)])
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids, logits_to_keep=3).logits, whole[:, -3:])
        torch.testing.assert_close(model(input_ids=ids, logits_to_keep=torch.tensor([1, 5])).logits, whole[:, [1, 5]])
        keep = torch.zeros(2, 8, dtype=torch.bool)
        keep[0, 3] = keep[1, 2] = keep[1, 7] = True
        base, guided = model.paired_logits(ids, torch.ones_like(ids), keep)
        torch.testing.assert_close(guided, whole[keep])
        with model.disable():
            torch.testing.assert_close(base, model(input_ids=ids).logits[keep])


def test_loss_of_labels_is_that_of_the_guided_distribution(model: T3ForCausalLM, oracle: Oracle) -> None:
    tokens = prompt(9)
    labels = torch.tensor([[-100] * 4 + tokens[4:]])
    expected = -oracle.distribution(tokens)[3:-1].gather(1, torch.tensor(tokens[4:])[:, None]).mean()
    assert model(input_ids=torch.tensor([tokens]), labels=labels).loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_inputs_embeds(model: T3ForCausalLM) -> None:
    ids = torch.tensor([prompt(8)])
    with torch.no_grad():
        by_embedding = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
        torch.testing.assert_close(by_embedding, model(input_ids=ids).logits)
    embeds = model.get_input_embeddings()(ids)
    mask = torch.ones_like(ids)
    out = model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY)
    assert torch.equal(out, model.generate(ids, attention_mask=mask, **GREEDY)[:, 8:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neutral_settings_and_disable_are_the_base_bit_for_bit(llama: LlamaForCausalLM, dtype: torch.dtype) -> None:
    llama = llama.to(dtype)
    ids = torch.tensor([prompt(8, 1), prompt(8, 2)])
    with torch.no_grad():
        expected = llama(input_ids=ids).logits
        generated = llama.generate(ids, **GREEDY)
        model = T3ForCausalLM.from_base(llama, make_head(), temperature=1.0, guidance_scale=0.0)
        seen = model(input_ids=ids).logits
        assert seen.dtype == expected.dtype and torch.equal(seen, expected)
        assert torch.equal(model.generate(ids, **GREEDY), generated)
        model.temperature, model.guidance_scale = 2.5, 1.0
        assert not torch.equal(model(input_ids=ids).logits, expected)
        with model.disable():
            assert torch.equal(model(input_ids=ids).logits, expected)
            assert torch.equal(model.generate(ids, **GREEDY), generated)
        assert not torch.equal(model(input_ids=ids).logits, expected)


def test_bfloat16_base_keeps_head_and_guided_logits_in_float32(llama: LlamaForCausalLM) -> None:
    model = T3ForCausalLM.from_base(llama.to(torch.bfloat16), make_head(), temperature=TEMPERATURE, guidance_scale=SCALE)
    ids = torch.tensor([prompt(8)])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert logits.dtype == torch.float32 and model.head.A.dtype == torch.float32
    expected = Oracle(model.base, model.head, TEMPERATURE, SCALE).distribution(ids[0].tolist())
    torch.testing.assert_close(log_distribution(logits[0]), expected, atol=0.05, rtol=0.05)


def test_settings_can_be_changed_and_are_checked(model: T3ForCausalLM) -> None:
    ids = torch.tensor([prompt(6)])
    for temperature, scale in ((1.0, 2.0), (3.0, 0.0), (0.5, 1.0)):
        model.temperature, model.guidance_scale = temperature, scale
        with torch.no_grad():
            distribution = log_distribution(model(input_ids=ids).logits[0])
        torch.testing.assert_close(
            distribution, Oracle(model.base, model.head, temperature, scale).distribution(ids[0].tolist()), atol=1e-4, rtol=1e-4
        )
    for name, bad in (("temperature", 0.0), ("guidance_scale", -1.0), ("forget_prior", 1.5)):
        with pytest.raises(ConfigError, match=str(bad)):
            setattr(model, name, bad)


def test_the_base_is_never_written(llama: LlamaForCausalLM) -> None:
    before = {name: weight.clone() for name, weight in llama.state_dict().items()}
    model = T3ForCausalLM.from_base(llama, make_head())
    model.generate(torch.tensor([prompt(6)]), **GREEDY)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in llama.state_dict().items())


def test_a_base_can_carry_several_adapters_and_is_left_clean(llama: LlamaForCausalLM) -> None:
    ids = torch.tensor([prompt(6)])
    first = T3ForCausalLM.from_base(llama, make_head(1), temperature=TEMPERATURE, guidance_scale=SCALE)
    second = T3ForCausalLM.from_base(llama, make_head(2), temperature=TEMPERATURE, guidance_scale=SCALE)
    with torch.no_grad():
        for model in (first, second, first):
            distribution = log_distribution(model(input_ids=ids).logits[0])
            expected = Oracle(llama, model.head, TEMPERATURE, SCALE).distribution(ids[0].tolist())
            torch.testing.assert_close(distribution, expected, atol=1e-4, rtol=1e-4)
    assert not any(module._forward_hooks for module in llama.modules())


# --- caches ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("static", [False, True])
def test_chunks_and_single_tokens_continue_the_state(model: T3ForCausalLM, oracle: Oracle, static: bool) -> None:
    tokens = prompt(14)
    cache = StaticCache(config=model.config, max_cache_len=20) if static else DynamicCache(config=model.config)
    parts = []
    with torch.no_grad():
        for start, stop in ((0, 5), (5, 6), (6, 10), (10, 14)):
            chunk = torch.tensor([tokens[start:stop]])
            positions = torch.arange(start, stop)[None]
            parts.append(model(input_ids=chunk, cache=cache, position_ids=positions, use_cache=True).logits[0])
    torch.testing.assert_close(log_distribution(torch.cat(parts)), oracle.distribution(tokens), atol=1e-4, rtol=1e-4)


def test_a_cropped_cache_has_forgotten_the_draft(model: T3ForCausalLM, oracle: Oracle) -> None:
    tokens, draft = prompt(9), prompt(4, 7)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.tensor([tokens[:8] + draft]), cache=cache, use_cache=True)
        cache.crop(-len(draft))
        logits = model(input_ids=torch.tensor([tokens[8:]]), cache=cache, use_cache=True).logits[0]
    torch.testing.assert_close(log_distribution(logits), oracle.distribution(tokens)[-1:], atol=1e-4, rtol=1e-4)


def test_rows_of_a_cache_can_be_reordered_selected_and_repeated(model: T3ForCausalLM, oracle: Oracle) -> None:
    prompts = [prompt(6, seed) for seed in range(3)]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.tensor(prompts), cache=cache, use_cache=True)
        cache.reorder_cache(torch.tensor([2, 0, 1]))
        cache.batch_select_indices(torch.tensor([0, 2]))
        cache.batch_repeat_interleave(2)
        logits = model(input_ids=torch.tensor([[11], [12], [13], [14]]), cache=cache, use_cache=True).logits[:, 0]
    for row, (source, token) in enumerate(zip((2, 2, 1, 1), (11, 12, 13, 14), strict=True)):
        torch.testing.assert_close(
            log_distribution(logits[row]), oracle.distribution([*prompts[source], token])[-1], atol=1e-4, rtol=1e-4
        )


def test_a_cache_filled_without_the_adapter_is_refused(model: T3ForCausalLM) -> None:
    ids = torch.tensor([prompt(6)])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model.base(input_ids=ids, cache=cache, use_cache=True)
        with pytest.raises(TemperTiltError, match="holds 6 positions, of which the adapter has seen 0"):
            model(input_ids=ids[:, :1], cache=cache, use_cache=True)
        assert cache.get_seq_length() == 6, "refused before the cache is touched"
        cache = DynamicCache(config=model.config)
        model(input_ids=ids, cache=cache, use_cache=True)
        with model.disable():
            model(input_ids=ids[:, :2], cache=cache, use_cache=True)
        with pytest.raises(TemperTiltError, match="holds 8 positions, of which the adapter has seen 6"):
            model(input_ids=ids[:, :1], cache=cache, use_cache=True)


def test_a_4d_mask_needs_a_pooling_mask(model: T3ForCausalLM, oracle: Oracle) -> None:
    tokens = prompt(6)
    ids = torch.tensor([[2, 2, *tokens]])
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    allowed = torch.tril(torch.ones(8, 8, dtype=torch.bool)) & real.bool()
    allowed |= torch.eye(8, dtype=torch.bool)
    mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        with pytest.raises(TemperTiltError, match="pooling_mask"):
            model(input_ids=ids, attention_mask=mask, position_ids=positions)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, pooling_mask=real).logits
    torch.testing.assert_close(log_distribution(logits[0, 2:]), oracle.distribution(tokens), atol=1e-4, rtol=1e-4)


# --- generate -------------------------------------------------------------------------------------------------------------


def test_sampling_follows_the_guided_distribution(model: T3ForCausalLM, oracle: Oracle) -> None:
    tokens = prompt(6)
    torch.manual_seed(0)
    out = model.generate(
        torch.tensor([tokens]), do_sample=True, max_new_tokens=1, num_return_sequences=4000, top_k=0, pad_token_id=2
    )
    counts = torch.bincount(out[:, -1], minlength=VOCAB).double() / 4000
    expected = oracle.distribution(tokens)[-1].exp()
    assert 0.5 * (counts - expected).abs().sum() < 0.5 * torch.sqrt(expected * (1 - expected) / 4000).sum() * 1.2
    top = set(expected.topk(5).indices.tolist())
    out = model.generate(
        torch.tensor([tokens]), do_sample=True, max_new_tokens=1, num_return_sequences=200, top_k=5, pad_token_id=2
    )
    assert set(out[:, -1].tolist()) <= top


def test_a_sampling_temperature_comes_on_top(model: T3ForCausalLM, oracle: Oracle) -> None:
    tokens = prompt(6)
    options = {"do_sample": True, "max_new_tokens": 1, "top_k": 0, "temperature": 0.5, "pad_token_id": 2}
    out = model.generate(torch.tensor([tokens]), output_scores=True, return_dict_in_generate=True, **options)
    torch.testing.assert_close(
        log_distribution(out.scores[0][0]), (2 * oracle.distribution(tokens)[-1]).log_softmax(-1), atol=1e-3, rtol=1e-3
    )


def beam_search(oracle: Oracle, tokens: list[int], beams: int, steps: int) -> list[tuple[float, list[int]]]:
    """Plain beam search over the guided distribution, no early end, sum of log-probabilities."""
    alive: list[tuple[float, list[int]]] = [(0.0, tokens)]
    for _ in range(steps):
        grown = []
        for score, sequence in alive:
            values, indices = oracle.distribution(sequence)[-1].topk(beams)
            grown += [(score + v, [*sequence, i]) for v, i in zip(values.tolist(), indices.tolist(), strict=True)]
        alive = sorted(grown, key=lambda item: -item[0])[:beams]
    return alive


@pytest.mark.parametrize("use_cache", [True, False])
def test_beams(model: T3ForCausalLM, oracle: Oracle, use_cache: bool) -> None:
    tokens = prompt(6)
    expected = beam_search(oracle, tokens, 4, 8)
    out = model.generate(
        torch.tensor([tokens]),
        attention_mask=torch.ones(1, 6, dtype=torch.long),
        use_cache=use_cache,
        num_beams=4,
        num_return_sequences=4,
        output_scores=True,
        return_dict_in_generate=True,
        length_penalty=0.0,
        **GREEDY | {"max_new_tokens": 8},
    )
    assert out.sequences.tolist() == [sequence for _, sequence in expected]
    assert out.sequences_scores.tolist() == pytest.approx([score for score, _ in expected], rel=1e-3)


def test_streaming_stopping_and_processors(model: T3ForCausalLM, oracle: Oracle, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = prompt(6)
    expected = oracle.greedy(tokens, 12)[6:]
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    out = model.generate(torch.tensor([tokens]), streamer=streamer, **GREEDY)
    assert out[0, 6:].tolist() == expected
    assert "".join(streamer) == tokenizer.decode(expected)

    class Third(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 9)

    out = model.generate(torch.tensor([tokens]), stopping_criteria=StoppingCriteriaList([Third()]), **GREEDY)
    assert out[0, 6:].tolist() == expected[:3]
    stopped = model.generate(torch.tensor([tokens]), **GREEDY | {"eos_token_id": expected[4]})
    assert stopped[0, 6:].tolist() == expected[: expected.index(expected[4]) + 1]
    banned = model.generate(torch.tensor([tokens]), bad_words_ids=[[expected[0]]], **GREEDY)
    assert expected[0] not in banned[0, 6:].tolist()


def test_drafts_change_nothing(model: T3ForCausalLM, oracle: Oracle) -> None:
    tokens = prompt(5) * 3
    ids, mask = torch.tensor([tokens]), torch.ones(1, 15, dtype=torch.long)
    expected = oracle.greedy(tokens, 12)
    assert model.generate(ids, attention_mask=mask, prompt_lookup_num_tokens=4, **GREEDY)[0].tolist() == expected
    draft = make_llama(seed=9)
    assert model.generate(ids, attention_mask=mask, assistant_model=draft, **GREEDY)[0].tolist() == expected
    near = make_llama(seed=0)  # agrees with the base, so that drafts are taken in part
    assert model.generate(ids, attention_mask=mask, assistant_model=near, **GREEDY)[0].tolist() == expected


def test_it_can_draft_for_another_model(model: T3ForCausalLM) -> None:
    other = make_llama(seed=9)
    ids, mask = torch.tensor([prompt(5)]), torch.ones(1, 5, dtype=torch.long)
    plain = other.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(other.generate(ids, attention_mask=mask, assistant_model=model, **GREEDY), plain)


def test_static_cache(model: T3ForCausalLM, oracle: Oracle) -> None:
    tokens = prompt(6)
    out = model.generate(torch.tensor([tokens]), cache_implementation="static", **GREEDY)
    assert out[0].tolist() == oracle.greedy(tokens, 12)


def test_text_generation_pipeline(
    model: T3ForCausalLM, oracle: Oracle, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    text = "Where does the painter live?"
    tokens = tokenizer(text).input_ids
    run = pipeline("text-generation", model=model, tokenizer=tokenizer)
    seen = run(text, return_full_text=False, **{k: v for k, v in GREEDY.items() if k != "pad_token_id"})[0]["generated_text"]
    assert seen == tokenizer.decode(oracle.greedy(tokens, 12)[len(tokens) :])
    assert "not supported" not in caplog.text


def test_last_pooling_reads_the_last_state(llama: LlamaForCausalLM) -> None:
    head = make_head()
    model = T3ForCausalLM.from_base(llama, head, temperature=1.0, guidance_scale=1.0, pooling="last")
    ids = torch.tensor([prompt(7)])
    with torch.no_grad():
        state = llama.model(input_ids=ids).last_hidden_state[0].double()
        base = llama(input_ids=ids).logits[0].double()
        seen = log_distribution(model(input_ids=ids).logits[0])
    log_odds = torch.zeros_like(base)
    log_odds[:, head.token_ids] = (state @ head.A.double().T) @ head.B.double().T
    torch.testing.assert_close(seen, (base.log_softmax(-1) + torch.sigmoid(log_odds).log()).log_softmax(-1), atol=1e-4, rtol=1e-4)
    cached, plain = (model.generate(ids, use_cache=use_cache, **GREEDY) for use_cache in (True, False))
    assert torch.equal(cached, plain)


# --- adapters -------------------------------------------------------------------------------------------------------------


@pytest.fixture()
def saved(tiny_dir: Path, tmp_path: Path) -> Path:
    base = LlamaForCausalLM.from_pretrained(tiny_dir)
    T3ForCausalLM.from_base(base, make_head(), temperature=TEMPERATURE, guidance_scale=SCALE).save_pretrained(tmp_path / "a")
    return tmp_path / "a"


def test_an_adapter_round_trip(saved: Path, tiny_dir: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert sum(tensor.numel() for tensor in load_file(saved / "adapter_model.safetensors").values()) < 32 * VOCAB
    ids = torch.tensor([prompt(8)])
    base = LlamaForCausalLM.from_pretrained(tiny_dir)
    expected = T3ForCausalLM.from_base(base, make_head(), temperature=TEMPERATURE, guidance_scale=SCALE)
    by_name = T3ForCausalLM.from_pretrained(saved, device="cpu")
    by_model = T3ForCausalLM.from_pretrained(saved, base_model=LlamaForCausalLM.from_pretrained(tiny_dir))
    in_bfloat16 = T3ForCausalLM.from_pretrained(saved, device="cpu", dtype="bfloat16")
    with torch.no_grad():
        for model in (by_name, by_model):
            assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)
        assert in_bfloat16.base.dtype == torch.bfloat16 and in_bfloat16.head.A.dtype == torch.float32
        assert in_bfloat16(input_ids=ids).logits.isfinite().all()


def test_another_base_is_refused_unless_told_otherwise(saved: Path) -> None:
    other = make_llama(seed=5)
    with pytest.raises(AdapterError, match=f"fingerprint {fingerprint(other)}"):
        T3ForCausalLM.from_pretrained(saved, base_model=other)
    assert T3ForCausalLM.from_pretrained(saved, base_model=other, check_base=False).temperature == TEMPERATURE
    narrow = make_llama(hidden_size=16, num_attention_heads=2, num_key_value_heads=2)
    with pytest.raises(ConfigError, match="hidden size 32"):
        T3ForCausalLM.from_pretrained(saved, base_model=narrow, check_base=False)


def damage(path: Path, how: str) -> str:
    """Break a saved adapter; return a word of the message."""
    config, weights = path / "adapter_config.json", path / "adapter_model.safetensors"
    fields = json.loads(config.read_text())
    if how == "no config":
        config.unlink()
        return "has no adapter_config.json"
    if how == "no weights":
        weights.unlink()
        return "not complete"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
        return "damaged or truncated"
    if how == "not json":
        config.write_text("{")
        return "cannot be read"
    if how == "other kind":
        config.write_text(json.dumps({"peft_type": "LORA"}))
        return "of kind 'LORA'"
    if how == "newer":
        config.write_text(json.dumps(fields | {"novelty": 1}))
        return "unknown fields novelty"
    config.write_text(json.dumps(fields | {"temperature": -1.0}))
    return "temperature"


@pytest.mark.parametrize("how", ["no config", "no weights", "truncated", "not json", "other kind", "newer", "bad value"])
def test_a_damaged_adapter_is_refused(saved: Path, llama: LlamaForCausalLM, how: str) -> None:
    word = damage(saved, how)
    with pytest.raises(AdapterError, match=word):
        T3ForCausalLM.from_pretrained(saved, base_model=llama)


def test_weights_of_the_wrong_shape_are_refused(saved: Path, llama: LlamaForCausalLM) -> None:
    tensors = load_file(saved / "adapter_model.safetensors")
    save_file({**tensors, "A": tensors["A"][:, :16].contiguous()}, saved / "adapter_model.safetensors")
    config = saved / "adapter_config.json"
    checksum = file_sha256(saved / "adapter_model.safetensors")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"weights_sha256": checksum}))
    with pytest.raises(AdapterError, match="hidden size 16"):
        T3ForCausalLM.from_pretrained(saved, base_model=llama)


def test_upload_and_download(model: T3ForCausalLM, saved: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("init", {"token": token}))

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            calls.append(("create", {"repo_id": repo_id, **options}))
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> str:
            calls.append(("upload", {"repo_id": repo_id, "files": sorted(p.name for p in Path(folder_path).iterdir())}))
            return "https://example.org/commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model.push_to_hub("me/adapter", private=True, token="t")
    assert calls[0] == ("init", {"token": "t"})
    assert calls[1][1]["repo_id"] == "me/adapter" and calls[1][1]["private"] is True
    assert calls[2][1]["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]

    asked: dict[str, Any] = {}

    def snapshot_download(repo_id: str, **options: Any) -> str:
        asked.update(repo_id=repo_id, **options)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded = T3ForCausalLM.from_pretrained(
        "me/adapter", base_model=LlamaForCausalLM.from_pretrained(tiny_dir), revision="v1", token="t"
    )
    assert loaded.temperature == TEMPERATURE
    assert asked["repo_id"] == "me/adapter" and asked["revision"] == "v1" and asked["token"] == "t"
