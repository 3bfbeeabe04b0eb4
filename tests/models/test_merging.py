"""PEFT adapters of a base: right, or refused with the cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PolyConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from support.tiny import make_llama
from tempertilt.errors import ModelError
from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.adapter import AdapterConfig, save_adapter
from tempertilt.models.base import load_base
from tempertilt.models.fingerprint import fingerprint

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
IDS = torch.tensor([[5, 6, 7, 8, 9, 5]])
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def make_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.2)).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "llama": make_llama,
    "tied": lambda: make_llama(tie_word_embeddings=True),
    "gpt2": make_gpt2,
}


@pytest.fixture()
def base(tmp_path: Path, tokenizer: Any, request: pytest.FixtureRequest) -> Path:
    """A directory of a base model, the plain one where the test names none."""
    path = tmp_path / "base"
    MODELS[getattr(request, "param", "llama")]().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def plain(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base).eval()


def train(base: Path, config: Any, *, rows: int | None = None) -> Path:
    """The directory of an adapter whose weights are random, and so is what it trains beside them."""
    model = plain(base)
    if rows:
        model.resize_token_embeddings(rows)
    tuned = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    tuned.save_pretrained(base.parent / "adapter")
    return base.parent / "adapter"


def lora(*modules: str, **options: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=list(modules or ("q_proj",)), task_type="CAUSAL_LM", **options)


def edit(adapter: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    weights = load_file(adapter / WEIGHTS)
    save_file(change(weights), adapter / WEIGHTS)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def load(base: Path, adapter: Path, **options: Any) -> Any:
    return load_base(str(base), peft_adapter=str(adapter), device="cpu", **options)


@pytest.mark.parametrize(
    ("base", "config"),
    [
        ("llama", lora("q_proj", "down_proj")),
        ("llama", lora("q_proj", use_dora=True)),
        ("llama", lora("q_proj", use_rslora=True, lora_alpha=16, bias="lora_only")),
        ("llama", lora("lm_head", "embed_tokens")),
        ("llama", lora("q_proj", modules_to_save=["lm_head"])),
        ("llama", IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")),
        ("llama", LoHaConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")),
        ("tied", lora("q_proj", "lm_head")),
        ("tied", lora("q_proj", "embed_tokens")),
        ("tied", lora("q_proj", modules_to_save=["embed_tokens"])),
        ("tied", lora("q_proj", modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
        ("tied", lora("q_proj", trainable_token_indices=[5, 9])),
        ("gpt2", lora("c_attn", fan_in_fan_out=True)),
        ("gpt2", lora("lm_head")),
    ],
    indirect=["base"],
)
def test_the_merged_model_says_what_the_adapter_says(base: Path, config: Any) -> None:
    adapter = train(base, config)
    expected = logits(PeftModel.from_pretrained(plain(base), str(adapter)).eval())
    assert not torch.allclose(logits(plain(base)), expected, atol=1e-2), "the adapter does something"
    merged = load(base, adapter)
    torch.testing.assert_close(logits(merged.model), expected, atol=2e-4, rtol=1e-3)
    merged.model.save_pretrained(base.parent / "merged")
    torch.testing.assert_close(logits(plain(base.parent / "merged")), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("part", "count"), [("model.layers", "6 of 6"), ("model.layers.0", "2 of 6")])
def test_weights_that_do_not_belong_to_the_model_are_refused(base: Path, part: str, count: str) -> None:
    adapter = train(base, lora())
    edit(adapter, lambda weights: {name.replace(part, part.replace("model", "inner")): w for name, w in weights.items()})
    with pytest.raises(ModelError, match=rf"^{count} weights of PEFT adapter .* do not belong to this model: .*inner\.layers"):
        load(base, adapter)


def test_weights_that_are_missing_are_refused(base: Path) -> None:
    adapter = train(base, lora("q_proj", modules_to_save=["lm_head"]))
    whole = load_file(adapter / WEIGHTS)
    edit(adapter, lambda weights: {name: weight for name, weight in weights.items() if "layers.1" not in name})
    with pytest.raises(ModelError, match=r"lacks 2 weights that its configuration asks for: .*layers\.1"):
        load(base, adapter)
    save_file({name: weight for name, weight in whole.items() if "lm_head" not in name}, adapter / WEIGHTS)
    with pytest.raises(ModelError, match=r"lacks the weight .*lm_head\.weight' that its configuration asks for"):
        load(base, adapter)


def test_what_does_not_fit_is_told_with_its_cause(base: Path) -> None:
    adapter = train(base, lora())
    edit(adapter, lambda weights: {name: torch.zeros(4, 7) if "lora_A" in name else w for name, w in weights.items()})
    with pytest.raises(ModelError, match=r"cannot load PEFT adapter .*: size mismatch for .*lora_A.*\[4, 7\].*\[4, 32\]"):
        load(base, adapter)
    (adapter / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"cannot load PEFT adapter .*: SafetensorError: .*header too small"):
        load(base, adapter)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(base: Path, value: float) -> None:
    adapter = train(base, lora())
    edit(adapter, lambda weights: {name: w.index_fill(0, torch.tensor([1]), value) for name, w in weights.items()})
    with pytest.raises(ModelError, match="not finite numbers"):
        load(base, adapter)


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1),
        PolyConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),  # what it says depends on a task's number
        lora(lora_bias=True),  # on a layer without a bias
    ],
    ids=lambda config: config.peft_type.value,
)
def test_kinds_that_can_not_be_merged_are_refused_by_name(base: Path, config: Any) -> None:
    get_peft_model(plain(base), config).save_pretrained(base.parent / "adapter")
    with pytest.raises(ModelError, match=f"is of kind {config.peft_type.value}, which can't be merged"):
        load(base, base.parent / "adapter")


def test_a_merge_that_is_not_exact_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = train(base, lora())
    from peft.tuners.lora import LoraModel

    merge = LoraModel.merge_and_unload

    def shared(self: Any) -> Any:
        merged = merge(self)
        merged.lm_head.weight.data *= 1.01
        return merged

    monkeypatch.setattr(LoraModel, "merge_and_unload", shared)
    with pytest.raises(ModelError, match=r"can't be merged exactly: .* differ by \d\.\d% .* at most 0\.1%"):
        load(base, adapter)
    assert load(base, adapter, dtype="bfloat16").model.dtype == torch.bfloat16, "in 16 bits that is rounding"


def test_what_is_no_peft_adapter_is_told(base: Path, tmp_path: Path) -> None:
    config = AdapterConfig("base", "f" * 32, "llama", 32, 320)
    save_adapter(tmp_path / "ours", GuidanceHead(32, 2, [1, 2]), config)
    with pytest.raises(ModelError, match="is a tempertilt adapter, not one of PEFT: it goes to --adapter"):
        load(base, tmp_path / "ours")
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        load(base, tmp_path / "other")
    (tmp_path / "other" / CONFIG).write_text('{"r": 4}')
    with pytest.raises(ModelError, match=r"names no peft_type"):
        load(base, tmp_path / "other")
    (tmp_path / "other" / CONFIG).write_text('{"peft_type": "LORA"')
    with pytest.raises(ModelError, match=r"cannot load PEFT adapter .*JSONDecodeError"):
        load(base, tmp_path / "other")
    adapter = train(base, lora())
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickled"):
        load(base, adapter)


def with_tokenizer(adapter: Path, base: Path, template: str | None = None, tokens: int = 0) -> Any:
    """Save the base's tokenizer beside the adapter, with another template or with more tokens."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.add_tokens([f"<new{i}>" for i in range(tokens)])
    tokenizer.save_pretrained(adapter)
    return tokenizer


TEMPLATE = "{% for m in messages %}## {{ m.role }}: {{ m.content }}{% endfor %}"


def test_the_tokenizer_beside_the_adapter_is_used(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapter = train(base, lora())
    with_tokenizer(adapter, base)
    assert load(base, adapter).tokenizer.name_or_path == str(base) and not caplog.text, "the same one is not worth a word"
    with_tokenizer(adapter, base, TEMPLATE)
    turns = [{"role": "user", "content": "Q"}]
    loaded = load(base, adapter).tokenizer
    assert loaded.apply_chat_template(turns, tokenize=False) == "## user: Q" and loaded.pad_token_id is not None
    assert caplog.text.count("tokenizer and chat template of PEFT adapter") == 1
    (adapter / "tokenizer_config.json").unlink()
    assert load(base, adapter).tokenizer.apply_chat_template(turns, tokenize=False) == "## user: Q"


@pytest.mark.parametrize("base", ["llama", "tied"], indirect=True)
@pytest.mark.parametrize("rows", [324, 316])
def test_embeddings_that_were_resized_come_with_their_tokenizer(base: Path, rows: int) -> None:
    config = lora("q_proj", modules_to_save=["embed_tokens", "lm_head"])
    adapter = train(base, config, rows=rows)
    with pytest.raises(ModelError, match=rf"has embeddings of {rows} tokens, the model of 320, and no tokenizer"):
        load(base, adapter)
    with_tokenizer(adapter, base, tokens=max(0, rows - 320))
    model = plain(base)
    model.resize_token_embeddings(rows)
    expected = logits(PeftModel.from_pretrained(model, str(adapter)).eval())
    merged = load(base, adapter)
    assert expected.shape[-1] == rows == merged.model.config.vocab_size and len(merged.tokenizer) == max(rows, 320)
    torch.testing.assert_close(logits(merged.model), expected, atol=2e-4, rtol=1e-3)


def test_new_rows_of_one_layer_alone_are_refused(base: Path) -> None:
    adapter = train(base, lora("q_proj", modules_to_save=["embed_tokens"]), rows=324)
    edit(adapter, lambda weights: {name: weight for name, weight in weights.items() if "lm_head" not in name})
    with_tokenizer(adapter, base, tokens=4)
    with pytest.raises(ModelError, match="holds the new rows of only one of embeddings and output layer"):
        load(base, adapter)


def test_the_fingerprint_is_of_the_weights_before_merging(base: Path) -> None:
    adapter = train(base, lora())
    name = load(base, adapter).fingerprint
    assert len(name) == 32 and name != load_base(str(base)).fingerprint
    assert {load(base, adapter, dtype=dtype).fingerprint for dtype in ("float32", "bfloat16")} == {name}
    copy = shutil.copytree(adapter, base.parent / "copy")
    edit(copy, lambda weights: dict(reversed(weights.items())))
    config = json.loads((copy / CONFIG).read_text())
    (copy / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "elsewhere", "peft_version": "9", "new": None}))
    assert load(base, copy).fingerprint == name
    (copy / CONFIG).write_text(json.dumps(config | {"lora_alpha": 9}))
    assert load(base, copy).fingerprint != name
    edit(adapter, lambda weights: {name: weight * 1.1 for name, weight in weights.items()})
    assert load(base, adapter).fingerprint != name


def test_a_merged_model_is_known_as_long_as_its_weights_are_the_same(base: Path) -> None:
    loaded = load(base, train(base, lora()))
    assert fingerprint(loaded.model) == loaded.fingerprint == fingerprint(loaded.model.bfloat16())
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(1.5)
    assert fingerprint(loaded.model) != loaded.fingerprint
