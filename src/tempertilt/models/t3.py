"""`T3ForCausalLM`: a frozen causal LM whose next-token law is tempered and tilted, with the full `generate`."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_utils import slice_logits_to_keep

from tempertilt.errors import AdapterError, ConfigError, TemperTiltError
from tempertilt.guidance.gate import EvidenceGate
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.pooling import scan
from tempertilt.guidance.tilt import check_forget_prior, check_guidance_scale, check_pooling, check_temperature, guided_logits
from tempertilt.models.adapter import Adapter, AdapterConfig, load_adapter, push_adapter, save_adapter
from tempertilt.models.base import body_of, check_unlearnable, decoder_layers, fingerprint, last_hidden_state, load_base
from tempertilt.models.cache import check_continues, pooling_layer

# What `generate` reads off a model class, and so must be the base model's own.
FROM_BASE = (
    "main_input_name",
    "input_modalities",
    "_is_stateful",
    "_supports_sdpa",
    "_supports_flash_attn",
    "_supports_flex_attn",
)


class NextTerms(NamedTuple):
    """What the law after the last k of n tokens of one sequence is made of.

    Attributes:
        logits: the base's, `(k, V)`.
        log_odds: of the head's tokens, `(k, K)`, nats.
        evidence: of each of the n tokens by itself, `(n,)`; None without a gate.
        openness: of the gate after each of the n tokens, `(n,)`; None without a gate.
        cache: with which the next call goes on.
    """

    logits: Tensor
    log_odds: Tensor
    evidence: Tensor | None
    openness: Tensor | None
    cache: Any


class T3ForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A base model with a guidance head: `log p_hat(v) = z(v)/T + s * w(l(v)) - log Z` (see `tempertilt.guidance.tilt`).

    With an evidence gate this holds where the gate is open; elsewhere the base's distribution (`tempertilt.guidance.gate`).

    Build it with `from_base` or `from_pretrained`. `config` and `generation_config` are the base model's own. The guided
    logits are float32 and not normalised; with `temperature` 1 and `guidance_scale` 0, or inside `disable()`, the output is
    the base model's, bit for bit.

    The pooled state is kept beside the keys and values, as one more layer of the cache. One forward pass at a time: like
    any module that keeps state during a call, an instance is not for several threads at once.

    Attributes:
        base: the frozen causal LM.
        head: the `GuidanceHead`, float32.
        gate: the `EvidenceGate`, or None: tempered and tilted everywhere.
        adapter_config: the `AdapterConfig` that `save_pretrained` writes.
    """

    base_model_prefix = "base"

    def __init__(self, base: Any, head: GuidanceHead, adapter_config: AdapterConfig, gate: EvidenceGate | None = None) -> None:
        super().__init__(base.config)
        self.base = base
        self.head = head.to(base.get_output_embeddings().weight.device)
        self.gate = gate.to(base.get_output_embeddings().weight.device) if gate else None
        self.adapter_config = adapter_config
        self.generation_config = base.generation_config
        for name in FROM_BASE:
            setattr(self, name, getattr(base, name))
        self._pooling = check_pooling(adapter_config.pooling)
        self._disabled = False
        self._capturing = False
        self._seen: dict[str, Tensor] = {}
        watched: dict[str, nn.Module] = {"last": body_of(base)}
        if gate is not None:
            watched["lower"] = decoder_layers(base)[gate.layer - 1]
        for name, module in watched.items():
            hook = module.register_forward_hook(_Capture(self, name))
            weakref.finalize(self, hook.remove)  # a base that outlives its adapters carries none of their hooks
        self.requires_grad_(False).eval()

    # --- building, saving -------------------------------------------------------------------------------------------

    @classmethod
    def from_base(
        cls,
        base: Any,
        head: GuidanceHead,
        *,
        gate: EvidenceGate | None = None,
        temperature: float = 2.5,
        guidance_scale: float = 1.0,
        forget_prior: float = 0.5,
        pooling: str = "mean",
        name: str | None = None,
        peft_adapter: str | None = None,
        base_fingerprint: str | None = None,
        training: dict[str, Any] | None = None,
    ) -> T3ForCausalLM:
        """Put a head on a loaded causal LM. The tilt's options are as in `tempertilt.guidance.tilt.guided_logits`.

        Args:
            gate: where to temper and tilt; None is everywhere.
            name, peft_adapter: what `from_pretrained` will load as base by default; `name` defaults to the base's own.
            base_fingerprint: where it is known; read from the base's weights otherwise.
            training: how the head was made, for the configuration and the model card.

        Raises:
            ConfigError: an option is out of range, or the head does not fit the model.
            ModelError: the model can't be unlearned from.
        """
        check_unlearnable(base)
        text_config = base.config.get_text_config()
        config = AdapterConfig(
            base_model=name or base.name_or_path,
            base_fingerprint=base_fingerprint or fingerprint(base),
            base_model_type=base.config.model_type,
            hidden_size=head.hidden_size,
            vocab_size=text_config.vocab_size,
            peft_adapter=peft_adapter,
            pooling=pooling,
            activation=head.activation,
            temperature=temperature,
            guidance_scale=guidance_scale,
            forget_prior=forget_prior,
            gate={"layer": gate.layer, "threshold": gate.threshold, "width": gate.width} if gate else None,
            training=training or {},
        )
        _check_fit(base, head, gate)
        return cls(base, head, config, gate)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        adapter: str | Path,
        *,
        base_model: Any = None,
        peft_adapter: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        token: str | None = None,
        check_base: bool = True,
        trust_remote_code: bool = False,
    ) -> T3ForCausalLM:
        """Load an adapter and its base model.

        Args:
            adapter: a directory or hub id.
            base_model: a loaded causal LM, or its name; None loads the one that the adapter names, with its PEFT adapter.
            peft_adapter: to merge into a base that is loaded by name; None takes the adapter's own for the adapter's base.
            device, dtype, trust_remote_code: as in `tempertilt.models.base.load_base`.
            revision, token: of the adapter on the hub.
            check_base: refuse a base whose fingerprint is not the one that the adapter was fitted on.

        Raises:
            AdapterError: the adapter can't be read, or belongs to another base.
            ModelError: the base can't be loaded.
        """
        if base_model is None or isinstance(base_model, (str, Path)):
            name = None if base_model is None else str(base_model)
            options = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
            model, _ = load_unlearned(
                adapter,
                name,
                peft_adapter=peft_adapter,
                revision=revision,
                token=token,
                check_base=check_base,
                **options,
            )
            return model
        found = load_adapter(adapter, revision=revision, token=token)
        check_unlearnable(base_model)
        return _join(adapter, base_model, fingerprint(base_model), found, check_base)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:  # type: ignore[override]
        """Write the adapter (configuration, safetensors, model card), never the base model.

        Args:
            save_directory: made if needed; an adapter in it is replaced.
            push_to_hub: also upload it; `repo_id`, `private`, `token` and `commit_message` go to `push_to_hub`.
        """
        save_adapter(Path(save_directory), self.head, self.adapter_config, self.gate)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload T3 adapter",
    ) -> str:
        """Upload the adapter to the hub; return the commit's address."""
        return push_adapter(self.save_pretrained, repo_id, private=private, token=token, message=commit_message)

    # --- the tilt's settings ----------------------------------------------------------------------------------------

    @property
    def temperature(self) -> float:
        """T > 0, dimensionless; 1 does not temper."""
        return self.adapter_config.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.adapter_config = replace(self.adapter_config, temperature=check_temperature(value))

    @property
    def guidance_scale(self) -> float:
        """s >= 0, dimensionless; 0 does not tilt."""
        return self.adapter_config.guidance_scale

    @guidance_scale.setter
    def guidance_scale(self, value: float) -> None:
        self.adapter_config = replace(self.adapter_config, guidance_scale=check_guidance_scale(value))

    @property
    def forget_prior(self) -> float:
        """The share of forget text in the base's law, in (0, 1); 1/2 gives the paper's tilt."""
        return self.adapter_config.forget_prior

    @forget_prior.setter
    def forget_prior(self, value: float) -> None:
        self.adapter_config = replace(self.adapter_config, forget_prior=check_forget_prior(value))

    @contextmanager
    def disable(self) -> Iterator[None]:
        """Inside, the model is its base model. Caches filled inside can't be continued outside, or the other way round."""
        before, self._disabled = self._disabled, True
        try:
            yield
        finally:
            self._disabled = before

    # --- forward ----------------------------------------------------------------------------------------------------

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
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's output with guided logits, and with `labels` the loss of the guided law.

        Args:
            input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, logits_to_keep, kwargs: as for the base.
            labels: `(B, T)`, -100 = not scored.
            pooling_mask: `(B, n)` of the new tokens, 1 = real; needed only where `attention_mask` is not 2-dimensional.

        Returns:
            The base's output class; `logits (B, kept, V)` float32.

        Raises:
            TemperTiltError: the cache was filled without the adapter, or padding can't be told from the mask.
        """
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        inputs |= {"position_ids": position_ids, "cache": cache, "use_cache": use_cache}
        inputs = {name: value for name, value in (inputs | kwargs).items() if value is not None}
        if not isinstance(logits_to_keep, int) or logits_to_keep:
            inputs["logits_to_keep"] = logits_to_keep
        if self._disabled:
            output = self.base(**inputs, labels=labels) if labels is not None else self.base(**inputs)
            return output if return_dict is not False else output.to_tuple()

        if isinstance(cache, Cache) and self._remembers:
            check_continues(cache)
        output = self._run_base(inputs)
        mask = self._new_token_mask(attention_mask, pooling_mask, self._seen["last"])
        output.logits = self._guide(output.logits, *self._read(mask, getattr(output, "cache", None)), logits_to_keep)
        if labels is not None:
            output.loss = self.base.loss_function(
                logits=output.logits, labels=labels, vocab_size=self.config.get_text_config().vocab_size
            )
        return output if return_dict is not False else output.to_tuple()

    def paired_logits(self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Base and guided logits of whole sequences from one pass of the base model.

        Args:
            input_ids, attention_mask: `(B, T)`, padded on either side.
            keep: `(B, T)` bool, the positions whose logits are wanted, N in all.

        Returns:
            Base logits `(N, V)` and guided logits `(N, V)`, rows in row-major order of `keep`.
        """
        logits, pooled, openness = self._kept(input_ids, attention_mask, keep)
        return logits, self._guide(logits, pooled, openness, 0)

    def tilt_terms(self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the guided law is made of, for arguments as in `paired_logits`.

        Returns:
            Base logits `(N, V)`, log-odds `(N, K)` of the head's tokens, and openness `(N,)`, None without a gate.
        """
        logits, pooled, openness = self._kept(input_ids, attention_mask, keep)
        return logits, self.head(pooled), openness

    def next_terms(self, input_ids: Tensor, cache: Cache | None = None, logits_to_keep: int = 1) -> NextTerms:
        """What the guided law after some tokens is made of, and the cache with which to go on: `tilt_terms`, step by step.

        Args:
            input_ids: `(1, n)`, all real tokens; with a cache the tokens after those that it holds.
            cache: what the last call gave; None begins.
            logits_to_keep: the law after so many last tokens is asked for, k; 0 = after each of them.

        Raises:
            TemperTiltError: the cache was filled without the adapter, or the base keeps its state in something else.
        """
        if cache is not None and self._remembers:
            check_continues(cache)
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": True} | ({} if cache is None else {"cache": cache})
        inputs |= {"logits_to_keep": logits_to_keep} if self._supports_logits_to_keep() else {}
        output = self._run_base(inputs)
        evidence = self.gate.evidence(self._seen["lower"].to(self.head.A.device))[0] if self.gate else None
        pooled, openness = self._read(None, output.cache)
        kept = slice(-logits_to_keep if logits_to_keep else None, None)
        log_odds = self.head(pooled[0, kept])
        return NextTerms(output.logits[0, kept], log_odds, evidence, None if openness is None else openness[0], output.cache)

    def _kept(self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Base logits, pooled projections and openness at the positions `keep`."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        sliced = self._supports_logits_to_keep()
        output = self._run_base(inputs | ({"logits_to_keep": keep} if sliced else {}))
        logits = output.logits if sliced else output.logits[keep]
        pooled, openness = self._read(attention_mask, None)
        keep = keep.to(pooled.device)
        return logits, pooled[keep], None if openness is None else openness[keep]

    @property
    def _remembers(self) -> bool:
        """Whether the law depends on more than the current position's states."""
        return self._pooling == "mean" or self.gate is not None

    def _run_base(self, inputs: dict[str, Any]) -> Any:
        """The base's output; what the hooks saw is in `_seen` until it is read."""
        self._capturing, self._seen = True, {}
        try:
            output = self.base(**inputs)
        finally:
            self._capturing = False
        assert "last" in self._seen, "the body of the base model did not run"
        return output

    def _read(self, mask: Tensor | None, cache: Any) -> tuple[Tensor, Tensor | None]:
        """Pooled projections `(B, n, r)` and openness `(B, n)` (None without a gate) of the new positions.

        What the cache holds is continued.
        """
        seen, self._seen = self._seen, {}
        device = self.head.A.device
        projected = self.head.project(seen["last"].to(device))
        if not self._remembers:
            return projected, None
        evidence = self.gate.evidence(seen["lower"].to(device)) if self.gate else None
        states = projected if self._pooling == "mean" else projected[..., :0]
        if cache is None:
            pooled, highest = scan(states, mask, evidence)
        elif isinstance(cache, Cache):
            pooled, highest = pooling_layer(cache).advance(states, mask, evidence)
        else:
            raise TemperTiltError(
                f"{type(self.base).__name__} keeps its state in a {type(cache).__name__}, beside which ours can't be kept; "
                "generate with use_cache=False, or fit with pooling='last' and no gate"
            )
        return pooled if self._pooling == "mean" else projected, self.gate.openness(highest) if self.gate else None

    def _guide(self, logits: Tensor, pooled: Tensor, openness: Tensor | None, logits_to_keep: int | Tensor) -> Tensor:
        if self.temperature == 1.0 and self.guidance_scale == 0.0:
            return logits
        if logits.shape[:-1] != pooled.shape[:-1]:
            pooled = slice_logits_to_keep(pooled, logits_to_keep)
            openness = None if openness is None else slice_logits_to_keep(openness.unsqueeze(-1), logits_to_keep).squeeze(-1)
        everything = len(self.head.token_ids) == logits.shape[-1]
        return guided_logits(
            logits,
            self.head(pooled).to(logits.device),
            None if everything else self.head.token_ids.to(logits.device),
            temperature=self.temperature,
            guidance_scale=self.guidance_scale,
            forget_prior=self.forget_prior,
            openness=None if openness is None else openness.to(logits.device),
        )

    @staticmethod
    def _new_token_mask(attention_mask: Any, pooling_mask: Tensor | None, state: Tensor) -> Tensor | None:
        """The mask of the new tokens, `(B, n)`, or None if all are real."""
        new = state.shape[1]
        if pooling_mask is None and attention_mask is not None:
            if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
                raise TemperTiltError(
                    "with an attention mask that is not (batch, positions), pass pooling_mask "
                    "(batch, new positions): 1 = real token"
                )
            pooling_mask = attention_mask
        return None if pooling_mask is None else pooling_mask[:, -new:]

    # --- what `generate` asks of a model ------------------------------------------------------------------------------

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

    @property
    def hf_device_map(self) -> dict[str, Any]:
        """The base model's, where it is spread over devices."""
        return self.base.hf_device_map  # type: ignore[no-any-return]


class _Capture:
    """Forward hook: hands a module's hidden state to a model that is waiting for it, and keeps no model alive."""

    def __init__(self, model: T3ForCausalLM, name: str) -> None:
        self.model, self.name = weakref.ref(model), name

    def __call__(self, _module: Any, _inputs: Any, output: Any) -> None:
        model = self.model()
        if model is not None and model._capturing:
            model._seen[self.name] = last_hidden_state(output)


def load_unlearned(
    adapter: str | Path,
    base_model: str | None = None,
    *,
    peft_adapter: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    check_base: bool = True,
    **options: Any,
) -> tuple[T3ForCausalLM, Any]:
    """An unlearned model and its tokenizer, by names; arguments and errors as in `T3ForCausalLM.from_pretrained`."""
    found = load_adapter(adapter, revision=revision, token=token)
    name, peft_adapter = found.config.base(base_model, peft_adapter)
    base = load_base(name, peft_adapter=peft_adapter, **options)
    return _join(adapter, base.model, base.fingerprint, found, check_base), base.tokenizer


def _join(adapter: str | Path, base: Any, seen: str, found: Adapter, check_base: bool) -> T3ForCausalLM:
    """Adapter and base as one model; `AdapterError` if the base is not the one that the adapter was fitted on."""
    config = found.config
    if check_base and seen != config.base_fingerprint:
        fitted = f"{config.base_model!r}" + (f" with PEFT adapter {config.peft_adapter!r}" if config.peft_adapter else "")
        raise AdapterError(
            f"adapter {str(adapter)!r} was fitted on {fitted}, fingerprint {config.base_fingerprint}; the base model given "
            f"has fingerprint {seen}. Give the same base, fit a new adapter with t3 unlearn, or pass check_base=False "
            "(--ignore-base-mismatch) if you know that they agree"
        )
    _check_fit(base, found.head, found.gate)
    return T3ForCausalLM(base, found.head, config, found.gate)


def _check_fit(base: Any, head: GuidanceHead, gate: EvidenceGate | None) -> None:
    weight = base.get_output_embeddings().weight
    if head.hidden_size != weight.shape[-1] or int(head.token_ids[-1]) >= weight.shape[0]:
        raise ConfigError(
            f"the head is for hidden size {head.hidden_size} and token ids up to {int(head.token_ids[-1])}; the base model has "
            f"hidden size {weight.shape[-1]} and {weight.shape[0]} tokens"
        )
    if gate is not None and (gate.hidden_size != head.hidden_size or gate.layer >= len(decoder_layers(base))):
        raise ConfigError(
            f"the gate is for hidden size {gate.hidden_size} after {gate.layer} layers; the base model has hidden size "
            f"{weight.shape[-1]} and {len(decoder_layers(base))} layers"
        )
