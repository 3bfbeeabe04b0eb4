"""vLLM's own model classes with a tilt on their logits: `T3LlamaForCausalLM` is `LlamaForCausalLM`, made when it is asked for.

The class's `forward` returns, beside the hidden state of each token, what the tilt needs of the text before it; the engine takes
the rows it wants, and `compute_logits` turns them into guided logits. That is the one way to numbers over the vocabulary: the
engine's samplers, penalties, biases, log-probabilities of prompts and of answers all start from it.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tempertilt.errors import AdapterError, ConfigError, ModelError
from tempertilt.guidance.gate import EvidenceGate
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.tilt import guided_logits
from tempertilt.integrations.vllm import text_architectures
from tempertilt.integrations.vllm.memory import CausalMemory, Layout
from tempertilt.integrations.vllm.serve import CHECKS, KEY, PREFIX, check_overrides
from tempertilt.integrations.vllm.weights import WeightsWatch
from tempertilt.models.adapter import AdapterConfig, load_adapter

if TYPE_CHECKING:
    from vllm.config import VllmConfig

DRAFTS = ("ngram", "ngram_gpu")  # speculation that reads nothing but tokens
SHORTCUTS = ("compute_logits_local", "get_top_tokens")  # ways from hidden states to tokens past `compute_logits`


def __getattr__(name: str) -> type[nn.Module]:
    if not name.startswith(PREFIX) or name == PREFIX:
        raise AttributeError(name)
    return unlearned_class(name.removeprefix(PREFIX))


@functools.cache
def unlearned_class(architecture: str) -> type[nn.Module]:
    """The engine's class for `architecture` with a tilt; `ModelError` if the engine has none."""
    from vllm.model_executor.models import ModelRegistry

    if architecture not in text_architectures():
        raise ModelError(f"the installed vLLM has no text generation model {architecture!r}")
    base = ModelRegistry.models[architecture].load_model_cls()
    return type(PREFIX + architecture, (_Unlearned, base), {"__module__": __name__, "__doc__": f"`{base.__name__}` with a tilt."})


class _Hidden:
    """A method that the class does not have, though its parents do: `hasattr` says no."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        raise AttributeError(f"{owner.__name__} has no {self.name}: it would pass the tilt by")


class _Unlearned(nn.Module):
    """Put before one of vLLM's model classes. Built by the engine, which gives the adapter in the model's configuration."""

    for _name in SHORTCUTS:
        locals()[_name] = _Hidden(_name)

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **kwargs: Any) -> None:
        model_config = vllm_config.model_config
        options = check_overrides(getattr(model_config.hf_config, KEY, None))
        adapter = load_adapter(options["adapter"])
        check_engine(vllm_config, adapter.config, remembers=adapter.config.pooling == "mean" or adapter.gate is not None)
        with _base_name(model_config.hf_config):
            super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
        from vllm.distributed import get_pp_group

        self._watch = WeightsWatch(adapter.config.base_fingerprint) if options["check_base"] else None
        self._hf_config = model_config.hf_config
        # not a submodule: the engine must not look for its weights in the checkpoint
        self._tilt = Tilt(adapter.head, adapter.config, adapter.gate, options).to(model_config.dtype, self._device())
        self._lower = LowerStates.of(self, adapter.gate, vllm_config) if adapter.gate else None
        self._memory = None
        if get_pp_group().is_last_rank and (rank := self._tilt.rank, adapter.gate is not None) != (0, False):
            layout = Layout(
                rank,
                adapter.gate is not None,
                model_config.get_num_attention_heads(vllm_config.parallel_config),
                model_config.get_num_kv_heads(vllm_config.parallel_config),
                model_config.get_head_size(),
                model_config.dtype,
            )
            # the engine tells the place of a layer by the number in its name: ours is the one after the last
            depth = model_config.hf_text_config.num_hidden_layers
            self._memory = CausalMemory(layout, f"{prefix}.t3_memory.{depth}.attn".lstrip("."))

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's hidden states `(n, d)`, and in further columns what the tilt needs of the text before each token."""
        output = super().forward(*args, **kwargs)
        lower = None
        if self._lower is not None:
            output, lower = self._lower.take(output)
        if self._memory is None or not isinstance(output, Tensor):  # what goes to the next rank of a pipeline
            return output
        tilt = self._tilt
        states = tilt.head.project(output) if tilt.rank else None
        value = tilt.openness(lower) if lower is not None else None
        return tilt.attach(output, *self._memory(states, value))

    def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        """Guided logits `(n, V)` of rows that `forward` gave; None on the ranks that hold no whole row."""
        states, pooled, openness = self._tilt.detach(hidden_states)
        logits = super().compute_logits(states, *args, **kwargs)  # type: ignore[misc]
        return None if logits is None else self._tilt.guide(logits, states, pooled, openness)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """The base's own; `AdapterError` if they are not those that the adapter was fitted on."""
        with _base_name(self._hf_config):
            if self._watch is None:
                return super().load_weights(weights)  # type: ignore[misc]
            loaded = super().load_weights(self._watch.through(weights))  # type: ignore[misc]
        self._watch.check(self._hf_config)
        return loaded


@contextmanager
def _base_name(config: Any) -> Iterator[None]:
    """Inside, a configuration names the base's own architecture, by which some models look up how their weights are named."""
    ours = config.architectures
    config.architectures = [name.removeprefix(PREFIX) for name in ours]
    try:
        yield
    finally:
        config.architectures = ours


class Tilt:
    """Head, gate and settings of an adapter, and the columns by which its numbers travel with the hidden states.

    The columns hold float32 bit by bit, whatever the type of the hidden states: in 16-bit types each number takes two.
    """

    def __init__(self, head: GuidanceHead, config: AdapterConfig, gate: EvidenceGate | None, options: dict[str, Any]) -> None:
        self.head, self.gate = head, gate
        self.rank = head.rank if config.pooling == "mean" else 0
        given = {name: options.get(name) for name in CHECKS}
        self.settings = {name: getattr(config, name) if value is None else value for name, value in given.items()}
        self.off = self.settings["temperature"] == 1.0 and self.settings["guidance_scale"] == 0.0
        self.columns = 0

    def to(self, dtype: torch.dtype, device: torch.device) -> Tilt:
        """Made ready for hidden states of a type on a device; returns itself."""
        self.head.requires_grad_(False).to(device)
        if self.gate is not None:
            self.gate.to(device)
        self.columns = (self.rank + (self.gate is not None)) * 4 // dtype.itemsize
        self.on_cpu = device.type == "cpu"
        return self

    def openness(self, states: Tensor) -> Tensor:
        """How far the gate opens for each token alone, `(n,)` in [0, 1]; it grows with the evidence, so maxima agree."""
        assert self.gate is not None
        return self.gate.openness(self.gate.evidence(states))

    def attach(self, states: Tensor, pooled: Tensor | None, openness: Tensor | None) -> Tensor:
        """Hidden states `(n, d)`, pooled projections `(n, r)` and openness `(n,)` as one `(n, d + columns)`."""
        parts = [part for part in (pooled, None if openness is None else openness.unsqueeze(-1)) if part is not None]
        return torch.cat([states, torch.cat(parts, -1).float().view(states.dtype)], -1)

    def detach(self, joined: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What `attach` joined."""
        if not self.columns:
            return joined, None, None
        states = joined[:, : -self.columns].contiguous()
        numbers = joined[:, -self.columns :].contiguous().view(torch.float32)
        return states, numbers[:, : self.rank] if self.rank else None, numbers[:, -1] if self.gate is not None else None

    def guide(self, logits: Tensor, states: Tensor, pooled: Tensor | None, openness: Tensor | None) -> Tensor:
        """Guided logits `(n, V)` float32; the base's own where the gate is shut for all (looked at on CPUs, where it is free)."""
        if self.off or (openness is not None and self.on_cpu and not bool(openness.any())):
            return logits
        pooled = self.head.project(states) if pooled is None else pooled
        token_ids = None if len(self.head.token_ids) == logits.shape[-1] else self.head.token_ids
        return guided_logits(logits, self.head(pooled), token_ids, openness=openness, **self.settings)


class LowerStates:
    """States of the batch's tokens after a lower decoder layer, for the gate.

    Models that can hand out states between layers (for EAGLE-3 drafts) are asked for them; in others a hook copies them into a
    buffer that stays at its place, which compiled and captured passes can write.
    """

    def __init__(self, buffer: Tensor | None = None, add_residual: bool = False) -> None:
        self.buffer, self.add_residual = buffer, add_residual

    @classmethod
    def of(cls, model: nn.Module, gate: EvidenceGate, vllm_config: VllmConfig) -> LowerStates:
        """Arrange it for a model that was just built; `ModelError` if the states between its layers can't be told."""
        from vllm.model_executor.models.interfaces import EagleModelMixin

        name = type(model).__name__.removeprefix(PREFIX)
        bodies = [module for module in model.modules() if isinstance(module, EagleModelMixin)]
        depth = vllm_config.model_config.hf_text_config.num_hidden_layers
        pipeline = vllm_config.parallel_config.pipeline_parallel_size > 1
        if len(bodies) == 1 and (not pipeline or bodies[0].supports_aux_hidden_states_over_pp):
            bodies[0]._set_aux_hidden_state_layers((gate.layer,))
            return cls()
        if pipeline:
            raise ModelError(f"vLLM's {name} hands no lower states to the next rank: serve it without pipeline parallelism")
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
        if not lists:
            raise ModelError(f"vLLM's {name} has no list of {depth} decoder layers: an adapter with a gate can't be served on it")
        layer = lists[0][gate.layer - 1]
        shape = (vllm_config.scheduler_config.max_num_batched_tokens, gate.hidden_size)
        device = next(model.parameters()).device
        buffer = torch.zeros(shape, dtype=vllm_config.model_config.dtype, device=device)
        lower = cls(buffer, residual_is_apart(layer))
        layer.register_forward_hook(lower._copy)
        return lower

    def _copy(self, layer: nn.Module, _inputs: Any, output: Any) -> None:
        assert self.buffer is not None
        state = output
        if isinstance(output, tuple):
            state = output[0] + output[1] if self.add_residual else output[0]
        if state.shape[-1] != self.buffer.shape[-1]:
            raise ModelError(f"{type(layer).__name__} gives states of shape {tuple(state.shape)}: a gate can't read them")
        state = state.reshape(-1, state.shape[-1])
        self.buffer[: state.shape[0]].copy_(state)

    def take(self, output: Any) -> tuple[Any, Tensor | None]:
        """The model's own output, and the states `(n, d)` of its tokens, None on ranks before the last."""
        if self.buffer is None and isinstance(output, tuple):
            states, (lower,) = output
            return states, lower
        if self.buffer is not None and isinstance(output, Tensor):
            return output, self.buffer[: output.shape[0]]
        return output, None


def residual_is_apart(layer: nn.Module) -> bool:
    """Whether a decoder layer of vLLM that returns two tensors leaves it to the next one to add the second to the first.

    Most do, and add within the norm of the next layer; some return their sum and a residual that nothing reads any more. They
    differ in whether they add the residual themselves.
    """
    return (
        re.search(r"residual \+|\+ residual|residual\.add|torch\.add\(residual", inspect.getsource(type(layer).forward)) is None
    )


def check_engine(vllm_config: VllmConfig, adapter: AdapterConfig, *, remembers: bool) -> None:
    """Raise an error that names what of the engine's settings would pass the tilt by, or is not known to keep it exact."""
    model, name = vllm_config.model_config, vllm_config.model_config.architecture.removeprefix(PREFIX)
    text = model.hf_text_config
    if adapter.hidden_size != text.hidden_size or adapter.vocab_size != text.vocab_size:
        raise AdapterError(
            f"the adapter is for hidden size {adapter.hidden_size} and {adapter.vocab_size} tokens; the model has "
            f"{text.hidden_size} and {text.vocab_size}: give the base model that it was fitted on"
        )
    if adapter.gate is not None and adapter.gate["layer"] >= text.num_hidden_layers:
        raise AdapterError(f"the gate reads states after {adapter.gate['layer']} layers; the model has {text.num_hidden_layers}")
    if model.runner_type != "generate":
        raise ConfigError(f"runner is {model.runner_type!r}: it would hand out hidden states; valid is 'generate'")
    if vllm_config.lora_config is not None:
        raise ConfigError(
            "LoRA is on: a model under a LoRA is another base than the adapter's; merge it and fit an adapter on it"
        )
    speculation = vllm_config.speculative_config
    if speculation is not None and speculation.method not in DRAFTS:
        raise ConfigError(f"speculation by {speculation.method!r} is not known to keep the tilt; valid are {', '.join(DRAFTS)}")
    if not remembers:
        return
    if model.use_mla or model.is_hybrid or model.is_attention_free:
        raise ModelError(
            f"{name} keeps no plain keys and values of every token (latent attention or a state space), beside which the "
            "adapter's memory could be kept: fit with pooling='last' and without a gate, or serve with transformers"
        )
    if vllm_config.cache_config.cache_dtype not in ("auto", *_names(model.dtype)):
        raise ConfigError(
            f"kv_cache_dtype is {vllm_config.cache_config.cache_dtype!r}: the adapter's memory needs the model's own type, 'auto'"
        )


def _names(dtype: torch.dtype) -> tuple[str, ...]:
    return (str(dtype).removeprefix("torch."),)
