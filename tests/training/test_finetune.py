"""Fine-tuning: cached and uncached give the same, the loss is the direct one, the base stays as it was."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from support.tiny import make_llama
from tempertilt.data.examples import Example
from tempertilt.errors import ConfigError, DataError, TemperTiltError
from tempertilt.models.base import decoder_layers
from tempertilt.training.finetune import FinetuneConfig, SimilarLengths, finetune
from tempertilt.training.replay import Replay
from tempertilt.training.runner import Runner

FAST = {"epochs": 3, "train_batch_size": 4, "lora_rank": 4, "lora_alpha": 8}
SMALL: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def gpt2() -> GPT2LMHeadModel:
    options = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=100, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **options))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: make_llama(vocab_size=100, num_hidden_layers=4),
    "gpt2": gpt2,
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=2.0, sliding_window=8)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, sliding_window=8)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=6)),
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def make_examples(n: int = 10) -> list[Example]:
    rng = np.random.default_rng(0)
    out = []
    for i in range(n):
        length = int(rng.integers(6, 20))
        out.append(Example(rng.integers(3, 100, length).astype(np.int32), np.arange(length) >= 3, f"{i}", f"{i}", i))
    return out


def lora_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "lora_" in name}


def direct_loss(model: Any, examples: list[Example]) -> float:
    """Mean loss of all scored tokens, one unpadded sequence at a time."""
    losses = []
    for example in examples:
        ids = torch.from_numpy(example.input_ids).long()[None]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        labels = torch.where(torch.from_numpy(example.scored), ids[0], -100)
        losses.append(F.cross_entropy(logits[:-1].float(), labels[1:], reduction="none")[labels[1:] != -100])
    return float(torch.cat(losses).mean())


@pytest.mark.integration
@pytest.mark.parametrize("name", list(MODELS))
def test_cached_and_uncached_training_are_the_same(name: str) -> None:
    examples = make_examples()
    runs = [finetune(build(name), examples, FinetuneConfig(cache_lower_layers=c, **FAST), progress=False) for c in (True, False)]
    assert runs[0].cached and not runs[1].cached
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-4)
    assert runs[0].losses[-1] < runs[0].losses[0]
    for (key, cached), plain in zip(lora_weights(runs[0].model).items(), lora_weights(runs[1].model).values()):
        torch.testing.assert_close(cached, plain, atol=2e-3, rtol=1e-2, msg=key)
    assert runs[0].trained_layers == [2, 3]
    assert all(
        ".layers.3." in key or ".layers.2." in key or ".h.2." in key or ".h.3." in key for key in lora_weights(runs[0].model)
    )


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_first_loss_is_the_direct_one(name: str) -> None:
    examples = make_examples(4)
    expected = direct_loss(build(name), examples)
    result = finetune(build(name), examples, FinetuneConfig(**FAST | {"epochs": 1}), progress=False)
    assert result.losses[0] == pytest.approx(expected, rel=1e-4)


def test_the_base_stays_as_it_was_and_its_layers_are_put_back() -> None:
    model = build("llama")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    layers = list(decoder_layers(model))
    result = finetune(model, make_examples(), FinetuneConfig(**FAST), progress=False)
    assert all(a is b for a, b in zip(layers, decoder_layers(result.model.get_base_model())))
    after = {
        name.replace(".base_layer", ""): p for name, p in result.model.get_base_model().named_parameters() if "lora_" not in name
    }
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_layers_are_put_back_after_an_error() -> None:
    model = build("llama")
    layers = decoder_layers(model)
    replay = Replay.of(model, layers, 2, make_examples(), 4.0)
    assert replay is not None
    before = list(layers)
    with pytest.raises(RuntimeError, match="stop"), replay.batch([0, 1]):
        assert layers[0] is not before[0] and layers[2] is before[2]
        raise RuntimeError("stop")
    assert all(a is b for a, b in zip(before, layers))


@pytest.mark.integration
def test_it_memorises_and_the_saved_adapter_gives_the_same_logits(tmp_path: Path) -> None:
    examples = make_examples(4)
    config = FinetuneConfig(epochs=200, train_batch_size=4, lora_rank=16, lora_alpha=32, learning_rate=1e-2)
    result = finetune(build("llama"), examples, config, progress=False)
    assert direct_loss(result.model, examples) == pytest.approx(result.losses[-1], rel=0.05)
    for example in examples:  # the frozen output layer bounds the loss from below, but every token is the most likely one
        ids = torch.from_numpy(example.input_ids).long()[None]
        assert torch.equal(result.model(input_ids=ids).logits[0, 2:-1].argmax(-1), ids[0, 3:])
    result.model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama"), str(tmp_path)).eval()
    ids = torch.arange(3, 30)[None]
    torch.testing.assert_close(again(input_ids=ids).logits, result.model(input_ids=ids).logits)


@pytest.mark.integration
def test_the_same_seed_gives_the_same_weights() -> None:
    runs = [
        lora_weights(finetune(build("llama"), make_examples(), FinetuneConfig(seed=s, **FAST), progress=False).model)
        for s in (3, 3, 4)
    ]
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values()))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[2].values()))


@pytest.mark.integration
def test_a_model_that_can_not_be_replayed_trains_without_a_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Replay, "is_exact", lambda *_: False)
    assert not finetune(build("llama"), make_examples(), FinetuneConfig(**FAST), progress=False).cached
    assert "not cached" in caplog.text
    assert not finetune(build("llama"), make_examples(), FinetuneConfig(max_cache_gib=0.0, **FAST), progress=False).cached
    assert not finetune(build("llama"), make_examples(), FinetuneConfig(train_layers=1.0, **FAST), progress=False).cached


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_replay_of_wrong_states_is_noticed(dtype: torch.dtype) -> None:
    model = build("llama").to(dtype)
    examples, layers = make_examples(), decoder_layers(model)
    replay = Replay.of(model, layers, 2, examples, 4.0)
    assert replay is not None and replay.is_exact(model, examples[:2])
    replay.states[0] += 0.5
    assert not replay.is_exact(model, examples[:2])


def plain_loop(model: Any, examples: list[Example], config: FinetuneConfig) -> tuple[dict[str, torch.Tensor], list[float]]:
    """LoRA weights and losses of the steps, by torch and peft alone, one unpadded sequence at a time."""
    torch.manual_seed(config.seed)
    names = [f"model.layers.{i}.{part}" for i in (2, 3) for part in
             ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
              "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]  # fmt: skip
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=names, task_type="CAUSAL_LM")
    tuned = get_peft_model(model, lora)
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    batches = SimilarLengths([len(example) for example in examples], config.train_batch_size, config.seed)
    steps, losses = config.epochs * len(batches), []
    for _ in range(config.epochs):
        for batch in batches:
            step, warmup = len(losses), max(1, round(config.warmup_ratio * steps))
            share = (step + 1) / warmup if step < warmup else (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
            for group in optimizer.param_groups:
                group["lr"] = share * config.learning_rate
            parts = []
            for i in batch:
                ids = torch.from_numpy(examples[i].input_ids).long()[None]
                labels = torch.where(torch.from_numpy(examples[i].scored), ids[0], -100)
                parts.append(F.cross_entropy(tuned(input_ids=ids).logits[0, :-1].float(), labels[1:], reduction="none"))
            loss = torch.cat(parts).sum() / sum(examples[i].n_scored for i in batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    return lora_weights(tuned), losses


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "max_grad_norm": 0.05, "warmup_ratio": 0.0, "seed": 2}])
def test_training_is_that_of_a_plain_loop(options: dict[str, Any]) -> None:
    examples, config = make_examples(), FinetuneConfig(**FAST | options)
    expected, losses = plain_loop(build("llama"), examples, config)
    result = finetune(build("llama"), examples, config, progress=False)
    assert result.step_losses == pytest.approx(losses, abs=1e-4)
    for (name, weight), other in zip(lora_weights(result.model).items(), expected.values()):
        torch.testing.assert_close(weight, other, atol=2e-4, rtol=1e-3, msg=name)


def test_only_the_dropout_of_lora_is_on_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab_size": 100, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.5)).train()
    training: list[set[str]] = []
    original = Runner.forward

    def forward(self: Runner, **indices: torch.Tensor) -> Any:
        training.append({"lora_dropout" in name for name, module in self.named_modules() if module.training})
        return original(self, **indices)

    monkeypatch.setattr(Runner, "forward", forward)
    finetune(model, make_examples(), FinetuneConfig(lora_dropout=0.3, **FAST), progress=False)
    assert training and all(kinds == {True} for kinds in training)


def test_epochs_report_the_mean_over_all_scored_tokens() -> None:
    examples = make_examples(5)  # batches of 4 and of 1
    result = finetune(build("llama"), examples, FinetuneConfig(**FAST | {"epochs": 1, "learning_rate": 1e-12}), progress=False)
    assert result.losses[0] == pytest.approx(direct_loss(build("llama"), examples), rel=1e-4)
    assert len(result.step_losses) == 2


def test_batches_hold_everything_once() -> None:
    lengths = list(np.random.default_rng(0).integers(1, 99, 101))
    sampler = SimilarLengths(lengths, 4, 0)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(101))
    assert max(map(len, batches)) == 4
    assert batches == list(SimilarLengths(lengths, 4, 0)) != list(SimilarLengths(lengths, 4, 1))
    assert batches != list(sampler), "each epoch draws anew"


def test_bad_input() -> None:
    with pytest.raises(DataError, match="no examples"):
        finetune(build("llama"), [], FinetuneConfig(), progress=False)
    with warnings.catch_warnings(), pytest.raises(TemperTiltError, match="lower learning_rate"):
        warnings.filterwarnings("error", message=".*requires_grad.*")
        finetune(
            build("llama"),
            make_examples(),
            FinetuneConfig(**FAST | {"learning_rate": 1e30, "max_grad_norm": 1e30}),
            progress=False,
        )
    for options in (
        {"train_layers": 0.0},
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"lora_dropout": 1.0},
        {"weight_decay": -1.0},
    ):
        with pytest.raises(ConfigError, match="must be"):
            FinetuneConfig(**options)  # type: ignore[arg-type]
