"""vLLM's own model classes with a tilt on their logits: `T3LlamaForCausalLM` is `LlamaForCausalLM`, made when it is asked for.

The class's `forward` returns, beside the hidden state of each token, what the tilt needs of the text before it; the engine takes
the rows it wants, and `compute_logits` turns them into guided logits. That is the one way to numbers over the vocabulary: the
engine's samplers, penalties, biases, log-probabilities of prompts and of answers all start from it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tempertilt.errors import AdapterError, ConfigError, ModelError
from tempertilt.guidance.composition import Composition
from tempertilt.guidance.guidance import Guidance
from tempertilt.integrations.vllm import text_architectures
from tempertilt.integrations.vllm.choices import Choices, load_guidance
from tempertilt.integrations.vllm.memory import CausalMemory, Heads, plan_layers
from tempertilt.integrations.vllm.options import (
    KEY,
    PREFIX,
    REPLY_PROCESSOR,
    SCHEDULER,
    WORKER,
    check_overrides,
    models_of,
    places_of,
)
from tempertilt.integrations.vllm.weights import WeightsWatch
from tempertilt.models.adapter import AdapterConfig, load_adapter

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
        models = models_of(options)
        adapters = {place: load_adapter(place) for each in models.values() for place in places_of(each).values()}
        guidances = {name: load_guidance(each, adapters.__getitem__) for name, each in models.items()}
        choices = Choices(guidances, _end_of(model_config))
        check_engine(vllm_config, [adapter.config for adapter in adapters.values()], choices)
        says = choices.width.ends > 0
        check_processor(model_config.logits_processors, says)
        with _base_name(model_config.hf_config):
            super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
        from vllm.distributed import get_pp_group

        self._fingerprint = next(iter(adapters.values())).config.base_fingerprint
        self._watch = WeightsWatch(self._fingerprint) if options["check_base"] else None
        self._vllm_config = vllm_config
        self._hf_config = model_config.hf_config
        # not submodules: the engine must not look for their weights in the checkpoint
        for guidance in choices.guidances:
            guidance.to(self._device())
        self._choices = choices
        self._requests: Callable[[], Sequence[tuple[str | None, int]]] = list  # see `follow_requests`
        width = choices.width
        self._columns = Columns(
            (width.rank, width.gates, int(choices.chooses), width.kinds + 2 if says else 0), model_config.dtype
        )
        self._replies: ReplyRows | None = None
        if says:
            from tempertilt.integrations.vllm.replies import ReplyRows

            self._replies = ReplyRows(choices, model_config.hf_config)
        self._lower = None if choices.layer is None else LowerStates.of(self, choices.layer, vllm_config)
        self._memory = None
        if get_pp_group().is_last_rank and choices.needs_memory:
            heads = Heads(
                model_config.get_num_attention_heads(vllm_config.parallel_config),
                model_config.get_num_kv_heads(vllm_config.parallel_config),
                model_config.get_head_size(),
                model_config.dtype,
            )
            layouts = plan_layers(width.rank, width.kinds, heads)
            # the engine tells the place of a layer by the number in its name: ours are those after the last
            depth = model_config.hf_text_config.num_hidden_layers
            names = [f"{prefix}.t3_memory.{depth + i}.attn".lstrip(".") for i in range(len(layouts))]
            self._memory = CausalMemory(layouts, names)

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    # --- several models ---------------------------------------------------------------------------------------------

    def follow_requests(self, requests: Callable[[], Sequence[tuple[str | None, int]]]) -> None:
        """Ask `requests` at every pass for the model that each request of the batch names, and its number of tokens there."""
        self._requests = requests

    def add_model(self, name: str, options: dict[str, Any]) -> None:
        """Serve one more model; `options` as beside a name in the engine's `models`.

        Raises:
            AdapterError, ConfigError: the adapter can't be read or is for another base, the name was given before, or there is
                no room for it.
        """
        options = check_overrides({"models": {name: options}})["models"][name]
        adapters = {place: load_adapter(place) for place in places_of(options).values()}
        if any(adapter.config.base_fingerprint != self._fingerprint for adapter in adapters.values()):
            raise AdapterError(f"an adapter of model {name!r} was fitted on another base model than the engine's")
        guidance = load_guidance(options, adapters.__getitem__)
        assert guidance is not None, "models have an adapter"
        check_shape(self._vllm_config, [adapter.config for adapter in adapters.values()], [guidance])
        self._choices.add(name, guidance.to(self._device()))

    def remove_model(self, name: str) -> None:
        """Serve a model no longer: requests that name it get empty answers. `ConfigError` if there is none of that name."""
        self._choices.remove(name)

    # --- passes -----------------------------------------------------------------------------------------------------

    def forward(
        self, input_ids: Tensor | None, positions: Tensor, *args: Any, **kwargs: Any
    ) -> Any:  # the engine gives them by these names
        """The base's hidden states `(n, d)`, and in further columns what the tilt needs of the text before each token."""
        output = super().forward(input_ids, positions, *args, **kwargs)
        lower = None
        if self._lower is not None:
            output, lower = self._lower.take(output)
        if not isinstance(output, Tensor):  # what goes to the next rank of a pipeline
            return output
        choices, count = self._choices, len(output)
        which = choices.which(self._requests(), count, output.device) if choices.chooses else None
        if self._memory is None:
            return self._columns.attach(output, None, None, which, None)
        ids = None if input_ids is None else input_ids[:count]
        position = (positions if positions.ndim == 1 else positions[0])[:count] + 1
        groups = choices.groups(which)
        projected, events = choices.observe(output, lower, ids, groups)
        means, latest = self._memory(projected, events, position)
        gates, extra = choices.read(means, latest, position, groups), None
        if self._replies is not None:
            assert ids is not None, "a reply is followed by token ids"
            extra = torch.cat([latest, position.float()[:, None], ids.float()[:, None]], -1)
        return self._columns.attach(output, means, gates, which, extra)

    def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        """Guided logits `(n, V)` of rows that `forward` gave; None on the ranks that hold no whole row."""
        states, (pooled, gates, number, extra) = self._columns.detach(hidden_states)
        which = None if number is None else number[:, 0].long()
        if self._replies is not None and extra is not None:
            self._replies.note(extra[:, :-2], extra[:, -2], extra[:, -1], which)
        logits = super().compute_logits(states, *args, **kwargs)  # type: ignore[misc]
        return None if logits is None else self._choices.guide(logits, states, pooled, gates, which)

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
        sizes: of the parts, 0 for one that is not there.
        dtype: of the hidden states.
    """

    def __init__(self, sizes: Sequence[int], dtype: torch.dtype) -> None:
        self.sizes = tuple(sizes)
        self.count = sum(sizes) * 4 // dtype.itemsize

    def attach(self, states: Tensor, *parts: Tensor | None) -> Tensor:
        """Hidden states `(n, d)` and the parts, `(n, size)` or of size 1 `(n,)`, as one `(n, d + count)`."""
        wide = [part.reshape(len(states), size).float() for part, size in zip(parts, self.sizes) if part is not None and size]
        return torch.cat([states, torch.cat(wide, -1).view(states.dtype)], -1) if wide else states

    def detach(self, joined: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """What `attach` joined, parts as `(n, size)`."""
        if not self.count:
            return joined, [None] * len(self.sizes)
        states = joined[:, : -self.count].contiguous()
        numbers = joined[:, -self.count :].contiguous().view(torch.float32)
        return states, [part if part.shape[1] else None for part in numbers.split(self.sizes, -1)]


def _end_of(model_config: Any) -> int | None:
    """A token with which an answer ends."""
    ends = getattr(model_config.hf_text_config, "eos_token_id", None)
    first = ends[0] if isinstance(ends, list) and ends else ends
    return first if isinstance(first, int) else None


def check_processor(processors: Sequence[Any] | None, says: bool) -> None:
    """Raise `ConfigError` where a reply is to be said, and the engine was not given what says it."""
    if says and REPLY_PROCESSOR not in (processors or []):
        raise ConfigError(
            f"an adapter has a reply: give vLLM logits_processors=[{REPLY_PROCESSOR!r}] (--logits-processors "
            f"{REPLY_PROCESSOR}), as tempertilt.integrations.vllm.engine_arguments does, or the reply 'guess'"
        )


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
        text = vllm_config.model_config.hf_text_config
        depth, width = text.num_hidden_layers, text.hidden_size
        pipeline = vllm_config.parallel_config.pipeline_parallel_size > 1
        if len(bodies) == 1 and (not pipeline or bodies[0].supports_aux_hidden_states_over_pp):
            bodies[0]._set_aux_hidden_state_layers((depth_below,))
            _make_room(model, bodies[0], width)
            return cls()
        if pipeline:
            raise ModelError(f"vLLM's {name} hands no lower states to the next rank: serve it without pipeline parallelism")
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
        if not lists:
            raise ModelError(f"vLLM's {name} has no list of {depth} decoder layers: an adapter with a gate can't be served on it")
        layer = lists[0][depth_below - 1]
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


def _make_room(model: Any, body: Any, width: int) -> None:
    """Let the second rank of a pipeline have room for the lower states that the first one sends beside the others."""
    make_empty, count = getattr(model, "make_empty_intermediate_tensors", None), body._aux_upstream_total_cached
    if make_empty is None or not count:
        return

    def make_room(batch_size: int, dtype: torch.dtype, device: torch.device) -> Any:
        tensors = make_empty(batch_size, dtype, device)
        for i in range(count):
            tensors[f"{body.AUX_HIDDEN_STATE_KEY}{i}"] = torch.zeros((batch_size, width), dtype=dtype, device=device)
        return tensors

    model.make_empty_intermediate_tensors = make_room


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


def check_engine(vllm_config: VllmConfig, adapters: Sequence[AdapterConfig], choices: Choices) -> None:
    """Raise an error that names what of the engine's settings would pass the tilt by, or is not known to keep it exact."""
    model, name = vllm_config.model_config, vllm_config.model_config.architecture.removeprefix(PREFIX)
    if len({adapter.base_fingerprint for adapter in adapters}) > 1:
        raise AdapterError("the adapters were fitted on different base models; must be one")
    several = choices.chooses or any(isinstance(guidance, Composition) for guidance in choices.guidances)
    if several and not model.enforce_eager and vllm_config.device_config.device_type != "cpu":
        raise ConfigError(
            "enforce_eager is False; must be True for several adapters: which of them act is decided token by token"
        )
    if choices.chooses:
        check_choosing(vllm_config)
    check_shape(vllm_config, adapters, choices.guidances)
    check_pipeline(vllm_config)
    if model.runner_type != "generate":
        raise ConfigError(f"runner is {model.runner_type!r}: it would hand out hidden states; must be 'generate'")
    if vllm_config.lora_config is not None:
        raise ConfigError(
            "LoRA is on: a model under a LoRA is another base than the adapter's; merge it and fit an adapter on it"
        )
    speculation = vllm_config.speculative_config
    if speculation is not None and speculation.method not in DRAFTS:
        raise ConfigError(f"speculation by {speculation.method!r} is not known to keep the tilt; must be {', '.join(DRAFTS)}")
    if not choices.needs_memory:
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


def check_shape(vllm_config: VllmConfig, adapters: Sequence[AdapterConfig], guidances: Sequence[Guidance | Composition]) -> None:
    """Raise `AdapterError` or `ConfigError` unless adapters and their guidances fit the engine's model."""
    text = vllm_config.model_config.hf_text_config
    for adapter in adapters:
        if adapter.vocab_size != text.vocab_size:
            raise AdapterError(
                f"an adapter is for {adapter.vocab_size} tokens; the model has {text.vocab_size}: give the base model that it "
                "was fitted on"
            )
    for guidance in guidances:
        guidance.check_fits(text.hidden_size, text.vocab_size, text.num_hidden_layers)


def check_pipeline(vllm_config: VllmConfig) -> None:
    """Raise `ConfigError` where lower states would not reach the last rank of a pipeline, or vLLM itself stops."""
    ranks = vllm_config.parallel_config.pipeline_parallel_size
    if ranks > 2:
        raise ConfigError(f"pipeline_parallel_size is {ranks}; must be at most 2: vLLM hands lower states to the next rank alone")
    if ranks == 2 and vllm_config.model_config.enforce_eager and vllm_config.device_config.device_type == "cpu":
        raise ConfigError(
            "enforce_eager is True; must be False for two pipeline ranks on a CPU: vLLM stops with a KeyError there, with or "
            "without an adapter"
        )


def check_choosing(vllm_config: VllmConfig) -> None:
    """Raise `ConfigError` where the engine would not tell which model a request names, or would mix what it remembers of them."""
    given = {"worker_cls": vllm_config.parallel_config.worker_cls, "scheduler_cls": vllm_config.scheduler_config.scheduler_cls}
    for option, wanted in (("worker_cls", WORKER), ("scheduler_cls", SCHEDULER)):
        if given[option] != wanted:
            raise ConfigError(
                f"{option} is {given[option]!r}; must be {wanted!r} for models that requests name, as "
                "tempertilt.integrations.vllm.engine_arguments gives it"
            )
    if vllm_config.use_v2_model_runner:
        raise ConfigError("the engine has the V2 model runner; must be VLLM_USE_V2_MODEL_RUNNER=0 for models that requests name")
    if getattr(vllm_config.parallel_config, "enable_dbo", False):
        raise ConfigError("enable_dbo is True; must be False for models that requests name: a batch is read in one piece")


def _names(dtype: torch.dtype) -> tuple[str, ...]:
    return (str(dtype).removeprefix("torch."),)
