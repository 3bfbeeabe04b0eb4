"""vLLM's own model classes with a tilt on their logits: `T3LlamaForCausalLM` is `LlamaForCausalLM`, made when it is asked for.

The class's `forward` returns, beside the hidden state of each token, what the tilt needs of the text before it; the engine takes
the rows it wants, and `compute_logits` turns them into guided logits. That is the one way to numbers over the vocabulary: the
engine's samplers, penalties, biases, log-probabilities of prompts and of answers all start from it.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tempertilt.errors import AdapterError, ConfigError, ModelError
from tempertilt.guidance.composition import Composition
from tempertilt.guidance.gate import EVENTS
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.pooling import Memory
from tempertilt.guidance.reply import Reply
from tempertilt.integrations.vllm import text_architectures
from tempertilt.integrations.vllm.memory import CausalMemory, Heads, plan_layers
from tempertilt.integrations.vllm.serve import (
    KEY,
    PREFIX,
    REPLY_PROCESSOR,
    SETTINGS,
    check_overrides,
    places_of,
)
from tempertilt.integrations.vllm.weights import WeightsWatch
from tempertilt.models.adapter import Adapter, AdapterConfig, load_adapter
from tempertilt.models.replies import GUESS

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from tempertilt.integrations.vllm.replies import ReplyRows

DRAFTS = ("ngram", "ngram_gpu")  # speculation that reads nothing but tokens


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

    def __get__(self, instance: object, owner: type) -> Any:
        raise AttributeError(f"{owner.__name__} goes from hidden states to tokens by compute_logits alone")


class _Unlearned(nn.Module):
    """Put before one of vLLM's model classes. Built by the engine, which gives the adapter in the model's configuration."""

    # ways from hidden states to tokens past `compute_logits`
    compute_logits_local = _Hidden()
    get_top_tokens = _Hidden()

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **kwargs: Any) -> None:
        model_config = vllm_config.model_config
        options = check_overrides(getattr(model_config.hf_config, KEY, None))
        adapters = {name: load_adapter(place) for name, place in places_of(options).items()}
        guidance = load_guidance(options, adapters)
        check_engine(vllm_config, [adapter.config for adapter in adapters.values()], guidance)
        says = bool(guidance.follows(None))
        check_processor(model_config.logits_processors, says)
        with _base_name(model_config.hf_config):
            super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
        from vllm.distributed import get_pp_group

        expected = next(iter(adapters.values())).config.base_fingerprint
        self._watch = WeightsWatch(expected) if options["check_base"] else None
        self._hf_config = model_config.hf_config
        # not a submodule: the engine must not look for its weights in the checkpoint
        self._guidance: list[Guidance | Composition] = [guidance.to(self._device())]
        shape = guidance.gate_shape
        events = 0 if shape is None else EVENTS * math.prod(shape)
        self._columns = Columns(guidance.rank, shape, events + 2 if says else 0, model_config.dtype)
        self._replies: ReplyRows | None = None
        if says:
            from tempertilt.integrations.vllm.replies import ReplyRows

            self._replies = ReplyRows(guidance, model_config.hf_config)
        self._lower = None if guidance.layer is None else LowerStates.of(self, guidance.layer, vllm_config)
        self._memory = None
        if get_pp_group().is_last_rank and guidance.needs_memory:
            heads = Heads(
                model_config.get_num_attention_heads(vllm_config.parallel_config),
                model_config.get_num_kv_heads(vllm_config.parallel_config),
                model_config.get_head_size(),
                model_config.dtype,
            )
            layouts = plan_layers(guidance.rank, events, heads)
            # the engine tells the place of a layer by the number in its name: ours are those after the last
            depth = model_config.hf_text_config.num_hidden_layers
            names = [f"{prefix}.t3_memory.{depth + i}.attn".lstrip(".") for i in range(len(layouts))]
            self._memory = CausalMemory(layouts, names)

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self, input_ids: Tensor | None, positions: Tensor, *args: Any, **kwargs: Any
    ) -> Any:  # the engine gives them by these names
        """The base's hidden states `(n, d)`, and in further columns what the tilt needs of the text before each token."""
        output = super().forward(input_ids, positions, *args, **kwargs)
        lower = None
        if self._lower is not None:
            output, lower = self._lower.take(output)
        if self._memory is None or not isinstance(output, Tensor):  # what goes to the next rank of a pipeline
            return output
        [guidance] = self._guidance
        position = (positions if positions.ndim == 1 else positions[0])[: len(output)] + 1
        new = guidance.observe(output, lower, None if input_ids is None else input_ids[: len(output)])
        events = new.events if new.events is not None else output.new_zeros(len(output), 0, dtype=torch.bool)
        means, latest = self._memory(new.projected, events, position)
        context = guidance.read(Memory(means, position, latest))
        extra = None
        if self._replies is not None:
            assert input_ids is not None, "a reply is followed by token ids"
            extra = torch.cat([latest, position.float()[:, None], input_ids[: len(output)].float()[:, None]], -1)
        return self._columns.attach(output, context.pooled, context.gate, extra)

    def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        """Guided logits `(n, V)` of rows that `forward` gave; None on the ranks that hold no whole row."""
        states, pooled, gate, extra = self._columns.detach(hidden_states)
        if self._replies is not None and extra is not None:
            self._replies.note(extra[:, :-2], extra[:, -2], extra[:, -1])
        logits = super().compute_logits(states, *args, **kwargs)  # type: ignore[misc]
        if logits is None:
            return None
        if gate is not None and gate.device.type == "cpu" and not bool(gate.any()):
            return logits  # type: ignore[no-any-return]  # the base's own where every gate is closed; free to see on CPUs
        return self._guidance[0].guide(logits, states, pooled, gate)

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


class Columns:
    """The columns by which what the guidance needs of a sequence travels with the hidden states of its tokens.

    They hold float32 bit by bit, whatever the type of the hidden states: in 16-bit types each number takes two.

    Args:
        rank: numbers of the pooled projections, 0 for none.
        gate_shape: of the gate values of a token; None without gates.
        extra: further numbers.
        dtype: of the hidden states.
    """

    def __init__(self, rank: int, gate_shape: tuple[int, ...] | None, extra: int, dtype: torch.dtype) -> None:
        self.gate_shape = gate_shape
        self.sizes = (rank, 0 if gate_shape is None else math.prod(gate_shape), extra)
        self.count = sum(self.sizes) * 4 // dtype.itemsize

    def attach(self, states: Tensor, pooled: Tensor | None, gate: Tensor | None, extra: Tensor | None = None) -> Tensor:
        """Hidden states `(n, d)`, projections `(n, r)`, gate values and `extra` numbers as one `(n, d + count)`."""
        given = (pooled, None if gate is None else gate.reshape(len(states), -1), extra)
        parts = [part for part, size in zip(given, self.sizes) if part is not None and size]
        return torch.cat([states, torch.cat(parts, -1).float().view(states.dtype)], -1)

    def detach(self, joined: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """What `attach` joined."""
        if not self.count:
            return joined, None, None, None
        states = joined[:, : -self.count].contiguous()
        numbers = joined[:, -self.count :].contiguous().view(torch.float32)
        pooled, gate, extra = (part if part.shape[1] else None for part in numbers.split(self.sizes, -1))
        return states, pooled, None if gate is None else gate.reshape(-1, *(self.gate_shape or ())), extra


def check_processor(processors: Sequence[Any] | None, says: bool) -> None:
    """Raise `ConfigError` where a reply is to be said, and the engine was not given what says it."""
    if says and REPLY_PROCESSOR not in (processors or []):
        raise ConfigError(
            f"an adapter has a reply: give vLLM logits_processors=[{REPLY_PROCESSOR!r}] (--logits-processors "
            f"{REPLY_PROCESSOR}), as tempertilt.integrations.vllm.engine_arguments does, or the reply 'guess'"
        )


def load_guidance(options: dict[str, Any], adapters: Mapping[str, Adapter]) -> Guidance | Composition:
    """The guidance of one adapter with the settings that the engine was given instead of its own, or that of several parts.

    Raises:
        ConfigError: a reply stands beside a neutral tilt: the engine's log-probabilities would be the base's.
    """
    guidance: Guidance | Composition
    if "adapters" in options:
        guidance = Composition({name: adapter.guidance for name, adapter in adapters.items()})
    else:
        guidance = _one_guidance(options, next(iter(adapters.values())))
    for part in guidance.parts if isinstance(guidance, Composition) else [guidance]:
        if part.reply is not None and part.tilt.is_neutral:
            raise ConfigError("an adapter with a reply has temperature 1 and guidance_scale 0; must tilt, or have no reply")
    return guidance.requires_grad_(False)


def _one_guidance(options: dict[str, Any], adapter: Adapter) -> Guidance:
    guidance, reply = adapter.guidance, options.get("reply")
    given = {name: options[name] for name in SETTINGS if options.get(name) is not None}
    guidance.tilt = replace(guidance.tilt, **given)
    if reply is not None:
        guidance.set_reply(None if reply == GUESS else Reply.from_settings(reply))
    return guidance


class LowerStates:
    """States of the batch's tokens after a lower decoder layer, for the gate.

    Models that can hand out states between layers (for EAGLE-3 drafts) are asked for them; in others a hook copies them into a
    buffer that stays at its place, which compiled and captured passes can write.
    """

    def __init__(self, buffer: Tensor | None = None) -> None:
        self.buffer = buffer

    @classmethod
    def of(cls, model: nn.Module, depth_below: int, vllm_config: VllmConfig) -> LowerStates:
        """Arrange it for a model that was just built; `ModelError` if the states between its layers can't be told.

        Args:
            depth_below: number of decoder layers below the states.
        """
        from vllm.model_executor.models.interfaces import EagleModelMixin

        name = type(model).__name__.removeprefix(PREFIX)
        bodies = [module for module in model.modules() if isinstance(module, EagleModelMixin)]
        depth = vllm_config.model_config.hf_text_config.num_hidden_layers
        pipeline = vllm_config.parallel_config.pipeline_parallel_size > 1
        if len(bodies) == 1 and (not pipeline or bodies[0].supports_aux_hidden_states_over_pp):
            bodies[0]._set_aux_hidden_state_layers((depth_below,))
            return cls()
        if pipeline:
            raise ModelError(f"vLLM's {name} hands no lower states to the next rank: serve it without pipeline parallelism")
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
        if not lists:
            raise ModelError(f"vLLM's {name} has no list of {depth} decoder layers: an adapter with a gate can't be served on it")
        layer = lists[0][depth_below - 1]
        width = vllm_config.model_config.hf_text_config.hidden_size
        shape = (vllm_config.scheduler_config.max_num_batched_tokens, width)
        device = next(model.parameters()).device
        buffer = torch.zeros(shape, dtype=vllm_config.model_config.dtype, device=device)
        lower = cls(buffer)
        layer.register_forward_hook(lower._copy, with_kwargs=True)
        return lower

    def _copy(self, layer: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        assert self.buffer is not None
        state = sum_of(layer, inputs, named, output)
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


def sum_of(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
    """The states after a decoder layer of vLLM, whose output is the states, or states and a residual.

    Most layers that return a residual take one, too, and leave it to the next layer's norm to add it. Others return the whole
    sum, and a residual that nothing reads any more: they take none (StableLM), or give back the states that they were given.
    """
    if not isinstance(output, tuple):
        return output  # type: ignore[no-any-return]
    states, residual = output[:2]
    signature = inspect.signature(type(layer).forward)
    given = signature.bind(layer, *inputs, **named).arguments.get("hidden_states")
    is_whole = residual is None or residual is given or "residual" not in signature.parameters
    return states if is_whole else states + residual  # type: ignore[no-any-return]


def check_engine(vllm_config: VllmConfig, adapters: Sequence[AdapterConfig], guidance: Guidance | Composition) -> None:
    """Raise an error that names what of the engine's settings would pass the tilt by, or is not known to keep it exact."""
    model, name = vllm_config.model_config, vllm_config.model_config.architecture.removeprefix(PREFIX)
    text = model.hf_text_config
    for adapter in adapters:
        if adapter.vocab_size != text.vocab_size:
            raise AdapterError(
                f"an adapter is for {adapter.vocab_size} tokens; the model has {text.vocab_size}: give the base model that it "
                "was fitted on"
            )
    if len({adapter.base_fingerprint for adapter in adapters}) > 1:
        raise AdapterError("the adapters were fitted on different base models; must be one")
    if isinstance(guidance, Composition) and not model.enforce_eager and vllm_config.device_config.device_type != "cpu":
        raise ConfigError(
            "enforce_eager is False; must be True for several adapters: which of them act is decided token by token"
        )
    guidance.check_fits(text.hidden_size, text.vocab_size, text.num_hidden_layers)
    if model.runner_type != "generate":
        raise ConfigError(f"runner is {model.runner_type!r}: it would hand out hidden states; must be 'generate'")
    if vllm_config.lora_config is not None:
        raise ConfigError(
            "LoRA is on: a model under a LoRA is another base than the adapter's; merge it and fit an adapter on it"
        )
    speculation = vllm_config.speculative_config
    if speculation is not None and speculation.method not in DRAFTS:
        raise ConfigError(f"speculation by {speculation.method!r} is not known to keep the tilt; must be {', '.join(DRAFTS)}")
    if not guidance.needs_memory:
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
