"""The model classes of the vLLM plugin without an engine: columns, states between layers, engines that are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support.gates import random_gates
from tempertilt.errors import ModelError, TemperTiltError
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.integrations.vllm.choices import Choices, load_guidance
from tempertilt.integrations.vllm.models import Columns, LowerStates, _Unlearned, check_engine, sum_of
from tempertilt.integrations.vllm.options import SCHEDULER, WORKER
from tempertilt.models.adapter import Adapter, AdapterConfig


def random_guidance(pooling: str, gated: bool, **options: float) -> Guidance:
    torch.manual_seed(0)
    head = GuidanceHead(16, 3, [2, 5, 6, 9])
    with torch.no_grad():
        head.B.normal_()
    config = AdapterConfig("base", "", "llama", 16, 12, pooling=pooling, temperature=1.5, guidance_scale=0.5, forget_prior=0.3)
    adapter = Adapter(config, head, random_gates(16) if gated else None)
    guidance = load_guidance({"adapter": "x", **options}, {"x": adapter}.__getitem__)
    assert isinstance(guidance, Guidance)
    return guidance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("extra", [0, 7])
@pytest.mark.parametrize("pooling,gated", [("mean", True), ("mean", False), ("last", True), ("last", False)])
def test_columns_carry_float32_to_the_logits(pooling: str, gated: bool, extra: int, dtype: torch.dtype) -> None:
    """Rows of hidden states are picked by the engine between the two; the numbers beside them come back bit by bit."""
    columns = Columns((3 if pooling == "mean" else 0, int(gated), extra), dtype)
    states, pooled = torch.randn(7, 16).to(dtype), torch.randn(7, 3) if pooling == "mean" else None
    gate = torch.rand(7) if gated else None
    others = torch.rand(7, extra) if extra else None
    joined = columns.attach(states, pooled, gate, others)
    assert joined.dtype == dtype and joined.shape == (7, 16 + columns.count)
    rows = torch.tensor([6, 0, 3])
    found, parts = columns.detach(joined[rows])
    assert torch.equal(found, states[rows])
    for value, expected in zip(parts, (pooled, gate, others), strict=True):
        assert (value is None) == (expected is None)
        assert value is None or expected is None or torch.equal(value, expected[rows].view(value.shape))


def test_the_engine_s_settings_take_the_place_of_the_adapter_s() -> None:
    guidance = random_guidance("last", False, temperature=2.0, guidance_scale=0.0)
    assert guidance.tilt == TiltConfig(2.0, 0.0, 0.3)


def test_shortcuts_past_the_tilt_are_gone() -> None:
    class Base(torch.nn.Module):
        def compute_logits_local(self) -> None: ...

        def get_top_tokens(self) -> None: ...

        def embed_input_ids(self) -> None: ...

    class Tilted(_Unlearned, Base):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

    for has in (Tilted, Tilted()):
        assert not hasattr(has, "compute_logits_local") and not hasattr(has, "get_top_tokens")
        assert hasattr(has, "embed_input_ids")


class Fused(torch.nn.Module):
    """Leaves the sum to the norm of the next layer; adds to the residual in place, as fused kernels do."""

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual += hidden_states
        return hidden_states * 2, residual


class Summed(torch.nn.Module):
    """Returns the sum, and the states that it was given, which nothing reads."""

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden_states * 4, hidden_states


class Plain(torch.nn.Module):
    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * 3


def test_states_between_layers() -> None:
    a, b = torch.randn(5, 16), torch.randn(5, 16)
    positions = torch.arange(5)
    for layer, arguments, expected in ((Fused(), (a, b.clone()), 3 * a + b), (Summed(), (a, b), 4 * a), (Plain(), (a,), 3 * a)):
        for named in (False, True):
            lower = LowerStates(torch.zeros(8, 16))
            handle = layer.register_forward_hook(lower._copy, with_kwargs=True)
            copies = [value.clone() for value in arguments]
            if named:
                layer(positions, **dict(zip(("hidden_states", "residual"), copies)))
            else:
                layer(positions, *copies)
            handle.remove()
            output, states = lower.take(torch.zeros(5, 20))
            assert output.shape == (5, 20) and states is not None
            torch.testing.assert_close(states, expected)
    lower._copy(Plain(), (positions, a), {}, a[None])  # one sequence with a batch dimension before it
    assert torch.equal(lower.take(a)[1], a)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="Plain gives states of shape"):
        lower._copy(Plain(), (positions, a), {}, torch.zeros(5, 7))
    given = LowerStates().take((a, [b]))  # as models give them that serve EAGLE-3 drafts
    assert given[0] is a and given[1] is b


def parallel(worker_cls: str = WORKER, pipeline_parallel_size: int = 1, enable_dbo: bool = False) -> SimpleNamespace:
    return SimpleNamespace(worker_cls=worker_cls, pipeline_parallel_size=pipeline_parallel_size, enable_dbo=enable_dbo)


def engine_config(**changes: object) -> SimpleNamespace:
    text = SimpleNamespace(hidden_size=16, vocab_size=12, num_hidden_layers=3)
    model = {"hf_text_config": text, "runner_type": "generate", "use_mla": False, "is_hybrid": False, "is_attention_free": False}
    model |= {"architecture": "T3XForCausalLM", "dtype": torch.bfloat16, "enforce_eager": False}
    found = {"lora_config": None, "speculative_config": None, "cache_config": SimpleNamespace(cache_dtype="auto")}
    found |= {"device_config": SimpleNamespace(device_type="cpu"), "use_v2_model_runner": False}
    found |= {"parallel_config": parallel()}
    found |= {"scheduler_config": SimpleNamespace(scheduler_cls=SCHEDULER)}
    model |= {name: value for name, value in changes.items() if name in model}
    found |= {name: value for name, value in changes.items() if name in found}
    return SimpleNamespace(model_config=SimpleNamespace(**model), **found)


UNSAFE: dict[str, tuple[dict[str, object], str]] = {
    "pooling": ({"runner_type": "pooling"}, "runner is 'pooling'"),
    "lora": ({"lora_config": object()}, "LoRA is on"),
    "drafts": ({"speculative_config": SimpleNamespace(method="eagle3")}, "speculation by 'eagle3'"),
    "latent": ({"use_mla": True}, "XForCausalLM keeps no plain keys"),
    "hybrid": ({"is_hybrid": True}, "XForCausalLM keeps no plain keys"),
    "quantised": ({"cache_config": SimpleNamespace(cache_dtype="fp8_e4m3")}, "kv_cache_dtype is 'fp8_e4m3'"),
    "size": (
        {"hf_text_config": SimpleNamespace(hidden_size=8, vocab_size=12, num_hidden_layers=3)},
        "the head is for hidden size 16",
    ),
    "ranks": ({"parallel_config": parallel(pipeline_parallel_size=3)}, "pipeline_parallel_size is 3; must be at most 2"),
    "eager ranks": ({"parallel_config": parallel(pipeline_parallel_size=2), "enforce_eager": True}, "vLLM stops with a KeyError"),
    "layers": ({"hf_text_config": SimpleNamespace(hidden_size=16, vocab_size=12, num_hidden_layers=1)}, "after 1 layers"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_engines_are_refused(name: str) -> None:
    adapter = AdapterConfig("base", "", "llama", 16, 12, gate=random_gates(16).settings)
    guidance, plain = random_guidance("mean", True), random_guidance("last", False)
    check_engine(engine_config(), [adapter], Choices({"": guidance}))
    check_engine(engine_config(speculative_config=SimpleNamespace(method="ngram")), [adapter], Choices({"": guidance}))
    changes, message = UNSAFE[name]
    with pytest.raises(TemperTiltError, match=message):
        check_engine(engine_config(**changes), [adapter], Choices({"": guidance}))
    if name in ("latent", "hybrid", "quantised"):  # an adapter without a memory has nothing there
        adapter = AdapterConfig("base", "", "llama", 16, 12, pooling="last")
        check_engine(engine_config(**changes), [adapter], Choices({"": plain}))


CHOOSING: dict[str, tuple[dict[str, object], str]] = {
    "worker": ({"parallel_config": parallel("auto")}, "worker_cls is 'auto'; must be 'tempertilt"),
    "scheduler": ({"scheduler_config": SimpleNamespace(scheduler_cls=None)}, "scheduler_cls is None; must be 'tempertilt"),
    "runner": ({"use_v2_model_runner": True}, "must be VLLM_USE_V2_MODEL_RUNNER=0"),
    "halves": ({"parallel_config": parallel(enable_dbo=True)}, "enable_dbo is True"),
    "graphs": ({"device_config": SimpleNamespace(device_type="cuda")}, "enforce_eager is False; must be True"),
    "bases": ({}, "fitted on different base models"),
}


@pytest.mark.parametrize("name", CHOOSING)
def test_engines_that_would_mix_models_are_refused(name: str) -> None:
    choices = Choices({"a": random_guidance("mean", True), "b": None})
    adapters = [AdapterConfig("base", fingerprint, "llama", 16, 12) for fingerprint in ("x", "x")]
    check_engine(engine_config(), adapters, choices)
    changes, message = CHOOSING[name]
    if name == "bases":
        adapters[1] = AdapterConfig("base", "y", "llama", 16, 12)
    with pytest.raises(TemperTiltError, match=message):
        check_engine(engine_config(**changes), adapters, choices)


class _LeavesTheResidual(torch.nn.Module):
    def forward(self, positions: Any, hidden_states: torch.Tensor, residual: torch.Tensor | None) -> Any:
        whole = hidden_states if residual is None else hidden_states + residual
        return torch.full_like(whole, 0.5), whole


class _ReturnsTheSum(torch.nn.Module):
    def forward(self, positions: Any, hidden_states: torch.Tensor) -> Any:
        middle = hidden_states + 1.0
        return middle + 2.0, middle


class _GivesBackWhatItWasGiven(torch.nn.Module):
    def forward(self, positions: Any, hidden_states: torch.Tensor, residual: torch.Tensor | None) -> Any:
        return hidden_states + 3.0, hidden_states


@pytest.mark.parametrize(
    "layer,inputs,expected",
    [
        (_LeavesTheResidual(), (torch.ones(2, 3), torch.full((2, 3), 4.0)), 5.5),
        (_ReturnsTheSum(), (torch.ones(2, 3),), 4.0),
        (_GivesBackWhatItWasGiven(), (torch.ones(2, 3), None), 4.0),
    ],
)
def test_states_after_a_layer_whatever_it_returns(layer: torch.nn.Module, inputs: tuple[Any, ...], expected: float) -> None:
    states = sum_of(layer, (None, *inputs), {}, layer(None, *inputs))
    assert torch.equal(states, torch.full((2, 3), expected))
