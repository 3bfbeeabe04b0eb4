"""A frozen causal LM whose next-token distribution is changed while it decodes: what every such model shares.

`FrozenLM` has the whole `generate` of transformers. A subclass names the modules whose states it reads and turns the base's
logits into its own. Threads may share a base model, and several wrappers may stand on one base.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_utils import slice_logits_to_keep

from tempertilt.errors import TemperTiltError
from tempertilt.models.base import last_hidden_state

# What `generate` reads off a model class, and so must be the base model's own.
FROM_BASE = (
    "main_input_name",
    "input_modalities",
    "_is_stateful",
    "_supports_sdpa",
    "_supports_flash_attn",
    "_supports_flex_attn",
)


# --- watching modules ----------------------------------------------------------------------------------------------------


class _Thread(threading.local):
    """What the present thread is doing: captures that wait for states, wrappers that are switched off."""

    def __init__(self) -> None:
        self.captures: list[Capture] = []
        self.disabled: list[int] = []


_THREAD = _Thread()
_HOOKED: dict[nn.Module, tuple[Any, int]] = {}  # watched modules: the handle of their hook, and how many watch them
_HOOKING = threading.Lock()


class Capture:
    """The states of one module in one forward pass of the present thread; None until it has run."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.states: Tensor | None = None


def _hand_over(module: nn.Module, _inputs: Any, output: Any) -> None:
    """Forward hook of every watched module: it serves all wrappers, and each thread has its own captures."""
    for capture in _THREAD.captures:
        if capture.module is module:
            capture.states = last_hidden_state(output)


@contextmanager
def watch(module: nn.Module) -> Iterator[Capture]:
    """Inside, the present thread's passes through `module` leave its hidden states `(B, T, d)` in the capture.

    The module has one hook while anybody watches it, and none after.
    """
    with _HOOKING:
        handle, watchers = _HOOKED.get(module) or (module.register_forward_hook(_hand_over), 0)
        _HOOKED[module] = (handle, watchers + 1)
    capture = Capture(module)
    _THREAD.captures.append(capture)
    try:
        yield capture
    finally:
        _THREAD.captures.remove(capture)
        with _HOOKING:
            handle, watchers = _HOOKED.pop(module)
            if watchers > 1:
                _HOOKED[module] = (handle, watchers - 1)
            else:
                handle.remove()


def switched_off(model: Any) -> AbstractContextManager[None]:
    """Inside, a `FrozenLM` is its base model; any other model is what it is."""
    disable = getattr(model, "disable", None)
    return nullcontext() if disable is None else disable()  # type: ignore[no-any-return]


# --- the wrapper ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BasePass:
    """One forward pass of the base model, as a wrapper sees it.

    Attributes:
        inputs: what the base was given, but for cache, use_cache and logits_to_keep.
        mask: `(B, n)` of the new tokens, 1 = real; None = all are.
        keep: logits_to_keep.
        cache: the cache that the base has filled, None where there is none.
        states: of the watched modules `(B, n, d)`, by name.
    """

    inputs: dict[str, Any]
    mask: Tensor | None
    keep: int | Tensor
    cache: Any
    states: dict[str, Tensor]

    def kept(self, values: Tensor) -> Tensor:
        """Of `(B, n, ...)` values at the new positions those whose logits are kept, shaped as the logits are."""
        flat = values.ndim == 2
        out: Tensor = slice_logits_to_keep(values.unsqueeze(-1) if flat else values, self.keep)
        return out.squeeze(-1) if flat else out


class FrozenLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A frozen causal LM under a change of its logits. `config` and `generation_config` are the base model's own.

    Attributes:
        base: the frozen causal LM; inside `disable()` its logits come out as they are.
        settings: what else than weights decides the output, JSON-ready.
        adapter_config: the configuration of an adapter, None where there is none.
    """

    base_model_prefix = "base"
    adapter_config: Any = None

    def __init__(self, base: Any) -> None:
        super().__init__(base.config)
        self.base = base
        self.generation_config = base.generation_config
        for name in FROM_BASE:
            setattr(self, name, getattr(base, name))

    # --- what a subclass says --------------------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """What else than weights decides the output, JSON-ready."""
        return {}

    def watched(self) -> Mapping[str, nn.Module]:
        """The modules whose states `new_logits` reads, by name."""
        return {}

    def check_cache(self, cache: Any) -> None:
        """Raise `TemperTiltError` where a cache can't be continued. Nothing is checked here."""

    @abstractmethod
    def new_logits(self, logits: Tensor, step: BasePass) -> Tensor:
        """The model's logits from the base's, both `(B, kept, V)` or `(N, V)`."""

    # --- on and off ------------------------------------------------------------------------------------------------------

    @contextmanager
    def disable(self) -> Iterator[None]:
        """Inside, the model is its base model, in the present thread.

        Caches filled inside can't be continued outside, or the other way round.
        """
        _THREAD.disabled.append(id(self))
        try:
            yield
        finally:
            _THREAD.disabled.remove(id(self))

    @property
    def is_disabled(self) -> bool:
        """Whether the present thread is inside `disable()`."""
        return id(self) in _THREAD.disabled

    # --- forward ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        pooling_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's output with this model's logits, and with `labels` the loss under them.

        Args:
            input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, logits_to_keep, kwargs: as for the base.
            labels: `(B, T)`, -100 = not scored.
            pooling_mask: `(B, n)` of the new tokens, 1 = real; needed only where `attention_mask` is not 2-dimensional.
            past_key_values: the older name of `cache`.

        Returns:
            The base's output class; `logits` `(B, kept, V)`.

        Raises:
            TemperTiltError: the cache was filled without this model, or padding can't be told from the mask.
        """
        cache = past_key_values if cache is None else cache
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        inputs = {name: value for name, value in (inputs | {"position_ids": position_ids} | kwargs).items() if value is not None}
        options = {"cache": cache, "use_cache": use_cache, "logits_to_keep": logits_to_keep}
        if isinstance(logits_to_keep, int) and not logits_to_keep:
            options["logits_to_keep"] = None
        options = {name: value for name, value in options.items() if value is not None}
        if self.is_disabled:
            output = self.base(**inputs, **options, **({} if labels is None else {"labels": labels}))
            return output if return_dict is not False else output.to_tuple()
        new = input_ids if inputs_embeds is None else inputs_embeds
        mask = _new_token_mask(attention_mask, pooling_mask, 0 if new is None else new.shape[1])
        if isinstance(cache, Cache):
            self.check_cache(cache)
        output, states = self.run_base(inputs | options)
        step = BasePass(inputs, mask, logits_to_keep, getattr(output, "cache", None), states)
        output.logits = self.new_logits(output.logits, step)
        if labels is not None:
            vocab_size = self.config.get_text_config().vocab_size
            output.loss = self.base.loss_function(logits=output.logits, labels=labels, vocab_size=vocab_size)
        return output if return_dict is not False else output.to_tuple()

    def run_base(self, inputs: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        """One pass of the base: its output, and the states of the watched modules `(B, n, d)` by name."""
        with ExitStack() as stack:
            captures = {name: stack.enter_context(watch(module)) for name, module in self.watched().items()}
            output = self.base(**inputs)
        missing = [name for name, capture in captures.items() if capture.states is None]
        if missing:
            raise TemperTiltError(f"the pass of {type(self.base).__name__} ran without its {missing[0]} layers: nothing to read")
        return output, {name: capture.states for name, capture in captures.items() if capture.states is not None}

    # --- what `generate` asks of a model ---------------------------------------------------------------------------------

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The base model's inputs for the next step, and the 2-dimensional mask of its new tokens."""
        if inputs_embeds is not None:  # named above, because `generate` looks for the name
            kwargs["inputs_embeds"] = inputs_embeds
        inputs: dict[str, Any] = self.base.prepare_inputs_for_generation(input_ids, *args, **kwargs)
        embeds, mask = inputs.get("inputs_embeds"), kwargs.get("attention_mask")
        fresh = inputs["input_ids"] if embeds is None else embeds[..., 0]
        if mask is None:  # `generate` drops a mask of ones
            inputs["pooling_mask"] = torch.ones_like(fresh, dtype=torch.long)
        elif isinstance(mask, Tensor) and mask.ndim == 2:
            inputs["pooling_mask"] = mask[:, -fresh.shape[1] :]
        return inputs

    def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.base._update_model_kwargs_for_generation(*args, **kwargs)  # type: ignore[no-any-return]

    def _supports_default_dynamic_cache(self) -> bool:  # type: ignore[override]
        return bool(self.base._supports_default_dynamic_cache())

    def _supports_logits_to_keep(self) -> bool:
        return bool(self.base._supports_logits_to_keep())

    def _check_and_adjust_attn_implementation(self, attn_implementation: Any, *_: Any, **__: Any) -> Any:
        return attn_implementation  # the base model has settled it

    def _check_and_adjust_experts_implementation(self, experts_implementation: Any, *_: Any, **__: Any) -> Any:
        return experts_implementation

    def get_input_embeddings(self) -> Any:
        """The base model's."""
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The base model's."""
        return self.base.get_output_embeddings()

    def resize_token_embeddings(self, *_: Any, **__: Any) -> NoReturn:
        """Refused.

        Raises:
            TemperTiltError: always.
        """
        raise TemperTiltError(
            "the embeddings of a frozen model can't be resized: head and fingerprint belong to the base as it is. Resize the "
            "base first and fit a new adapter on it"
        )

    @property
    def hf_device_map(self) -> dict[str, Any]:
        """The base model's, where it is spread over devices."""
        return self.base.hf_device_map  # type: ignore[no-any-return]


def _new_token_mask(attention_mask: Any, pooling_mask: Tensor | None, new: int) -> Tensor | None:
    """The mask of the new tokens, `(B, n)`, or None if all are real."""
    if pooling_mask is None and attention_mask is not None:
        if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
            raise TemperTiltError(
                "the attention mask is not (batch, positions): pass pooling_mask (batch, new positions) beside it, 1 = real token"
            )
        pooling_mask = attention_mask
    return None if pooling_mask is None else pooling_mask[:, -new:]
