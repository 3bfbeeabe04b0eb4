"""`T3ForCausalLM`: a frozen causal LM whose next-token distribution is tempered and tilted, with the full `generate`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tempertilt.guidance.gate import Evidence, Gates
from tempertilt.guidance.guidance import Context, Guidance
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.reply import Reply
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.adapter import KIND, Adapter, AdapterConfig, check_fitted_on, load_adapter, push_adapter, save_adapter
from tempertilt.models.base import check_unlearnable, load_base
from tempertilt.models.fingerprint import fingerprint
from tempertilt.models.guided import GuidedLM


class NextTerms(NamedTuple):
    """What the guided distribution after the last k of n tokens of one sequence is made of.

    Attributes:
        logits: the base's, `(k, V)`.
        log_odds: of the head's tokens, `(k, K)`, nats.
        evidence: of each of the n tokens by itself, `(1, n)`; None without gates.
        gate: value of the gates after each of the n tokens, `(n,)`; None without gates.
        reply: token of the reply that is next after each of the n tokens, `(n,)`, -1 for none; None without a reply.
        cache: with which the next call goes on.
    """

    logits: Tensor
    log_odds: Tensor
    evidence: Evidence | None
    gate: Tensor | None
    reply: Tensor | None
    cache: Any


class T3ForCausalLM(GuidedLM):
    """A base model with a guidance head: `log p_hat(v) = z(v)/T + s * w(l(v)) - log Z` (see `tempertilt.guidance.tilt`).

    With gates this holds where they are open; elsewhere the distribution is the base's. With a `reply`, its next token is sure
    where they are open (see `tempertilt.guidance.reply`).

    Build it with `from_base` or `from_pretrained`. The guided logits are float32 and not normalised; with `temperature` 1 and
    `guidance_scale` 0, or inside `disable()`, the output is the base model's, bit for bit.

    Attributes:
        base: the frozen causal LM.
        guidance: head, gates, tilt, pooling and reply.
        adapter_config: the `AdapterConfig` that `save_pretrained` writes.
    """

    guidance: Guidance

    def __init__(self, base: Any, head: GuidanceHead, adapter_config: AdapterConfig, gates: Gates | None = None) -> None:
        super().__init__(base)
        self.guidance = Adapter(adapter_config, head, gates).guidance.to(base.get_output_embeddings().weight.device)
        self.adapter_config = adapter_config
        self.requires_grad_(False).eval()

    # --- building, saving -------------------------------------------------------------------------------------------

    @classmethod
    def from_base(
        cls,
        base: Any,
        head: GuidanceHead,
        *,
        gates: Gates | None = None,
        reply: Reply | None = None,
        temperature: float = 2.5,
        guidance_scale: float = 1.0,
        forget_prior: float = 0.5,
        pooling: str = "mean",
        name: str | None = None,
        peft_adapter: str | None = None,
        base_fingerprint: str | None = None,
        training: dict[str, Any] | None = None,
    ) -> T3ForCausalLM:
        """Put a head on a loaded causal LM. The tilt's options are those of `TiltConfig`.

        Args:
            gates: where to temper and tilt; None is everywhere.
            reply: said where they are open, by `tempertilt.models.replies.make_reply`; None draws a guess from the tilt.
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
            gate=gates.settings if gates else None,
            reply=reply.settings if reply else None,
            training=training or {},
        )
        model = cls(base, head, config, gates)
        model.check_fits()
        return model

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
        loaded = load_adapter(adapter, revision=revision, token=token)
        check_unlearnable(base_model)
        return _join(adapter, base_model, fingerprint(base_model), loaded, check_base)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:  # type: ignore[override]
        """Write the adapter (configuration, safetensors, model card), never the base model.

        Args:
            save_directory: made if needed; an adapter in it is replaced.
            push_to_hub: also upload it; `repo_id`, `private`, `token` and `commit_message` go to `push_to_hub`.
        """
        save_adapter(Path(save_directory), self.guidance.head, self.adapter_config, self.guidance.gates)
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
    def head(self) -> GuidanceHead:
        """The guidance head, float32."""
        return self.guidance.head

    @property
    def gates(self) -> Gates | None:
        """The gates, or None: tempered and tilted everywhere."""
        return self.guidance.gates

    @property
    def tilt(self) -> TiltConfig:
        """Temperature, scale and prior; in the present thread those of `tilted`, where it is inside."""
        return _THREAD.tilts.get(id(self), self.guidance.tilt)

    @tilt.setter
    def tilt(self, tilt: TiltConfig) -> None:
        self.guidance.tilt = tilt
        self.adapter_config = replace(self.adapter_config, **asdict(tilt))

    @property
    def temperature(self) -> float:
        """T > 0, dimensionless; 1 does not temper."""
        return self.tilt.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.tilt = replace(self.guidance.tilt, temperature=value)

    @property
    def guidance_scale(self) -> float:
        """s >= 0, dimensionless; 0 does not tilt."""
        return self.tilt.guidance_scale

    @guidance_scale.setter
    def guidance_scale(self, value: float) -> None:
        self.tilt = replace(self.guidance.tilt, guidance_scale=value)

    @property
    def forget_prior(self) -> float:
        """The share of forget text in the base's distribution, in (0, 1]; 1/2 gives the paper's tilt."""
        return self.tilt.forget_prior

    @forget_prior.setter
    def forget_prior(self, value: float) -> None:
        self.tilt = replace(self.guidance.tilt, forget_prior=value)

    @property
    def reply(self) -> Reply | None:
        """What is said where the gates are open; None = drawn from the tempered and tilted distribution."""
        return self.guidance.reply

    def set_reply(self, reply: Reply | None) -> None:
        """Say another reply, or None; caches that were filled before can't be continued. (No setter: the value is a module.)

        Raises:
            ConfigError: the model has no gates.
            AdapterError: the reply has tokens that the base does not have.
        """
        if reply is not None:
            reply.check_fits(self.base.get_output_embeddings().weight.shape[0])
        self.guidance.set_reply(reply)
        self.adapter_config = replace(self.adapter_config, reply=reply.settings if reply else None)

    @contextmanager
    def tilted(self, tilt: TiltConfig) -> Iterator[None]:
        """Inside, the present thread's passes have these settings of the tilt."""
        before = dict(_THREAD.tilts)
        _THREAD.tilts[id(self)] = tilt
        try:
            yield
        finally:
            _THREAD.tilts = before

    @property
    def settings(self) -> dict[str, Any]:
        """What else than weights decides the output."""
        config = self.adapter_config
        named = {"pooling": config.pooling, "activation": config.activation, "gate": config.gate}
        return asdict(self.guidance.tilt) | named | ({"reply": config.reply} if config.reply else {})

    # --- passes -----------------------------------------------------------------------------------------------------

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As `generate` of transformers; `guidance_scale` is the tilt's s for this call.

        In transformers the name asks for classifier-free guidance, which is another thing.
        """
        scale = kwargs.pop("guidance_scale", None)
        if scale is None:
            return super().generate(*args, **kwargs)
        with self.tilted(replace(self.tilt, guidance_scale=scale)):
            return super().generate(*args, **kwargs)

    def guided(self, logits: Tensor, last: Tensor, context: Context) -> Tensor:
        """Guided logits with the settings of `tilt`."""
        return self.guidance.guide(logits, last, context.pooled, context.gate, self.tilt, context.reply)

    def tilt_terms(self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the guided distribution is made of, for arguments as in `paired_logits`.

        Returns:
            Base logits `(N, V)`, log-odds `(N, K)` of the head's tokens, and gate values `(N,)`, None without a gate.
        """
        logits, last, context = self.at(input_ids, attention_mask, keep)
        return logits, self.guidance.log_odds(last, context.pooled), context.gate

    def gate_values(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor | None:
        """`g` `(B, T)` after each token of whole sequences, padded on either side; None without gates."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        _, states = self.run_base(inputs | ({"logits_to_keep": 1} if self._supports_logits_to_keep() else {}))
        _, context = self.remember(states, input_ids, attention_mask, None)
        return context.gate

    def next_terms(self, input_ids: Tensor, cache: Cache | None = None, logits_to_keep: int = 1) -> NextTerms:
        """What the guided distribution after some tokens is made of, and the cache with which to go on.

        Args:
            input_ids: `(1, n)`, all real tokens; with a cache the tokens after those that it holds.
            cache: what the last call gave; None begins.
            logits_to_keep: the distribution after so many last tokens is wanted, k; 0 = after each of them.

        Raises:
            TemperTiltError: the cache was filled without the adapter, or the base keeps its state in something else.
        """
        if cache is not None:
            self.check_cache(cache)
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": True} | ({} if cache is None else {"cache": cache})
        inputs |= {"logits_to_keep": logits_to_keep} if self._supports_logits_to_keep() else {}
        output, states = self.run_base(inputs)
        new, context = self.remember(states, input_ids, None, output.cache)
        pooled, gate, reply = (None if values is None else values[0] for values in context)
        kept = slice(-logits_to_keep if logits_to_keep else None, None)
        log_odds = self.guidance.log_odds(states["last"][0, kept], None if pooled is None else pooled[kept])
        return NextTerms(output.logits[0, kept], log_odds, new and new.evidence, gate, reply, output.cache)


class _Thread(threading.local):
    """Settings of the tilt that hold in the present thread, by the identity of their model."""

    def __init__(self) -> None:
        self.tilts: dict[int, TiltConfig] = {}


_THREAD = _Thread()


MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[KIND] = T3ForCausalLM.__name__  # where `pipeline` looks up whether it takes a model


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
    loaded = load_adapter(adapter, revision=revision, token=token)
    name, peft_adapter = loaded.config.base(base_model, peft_adapter)
    base = load_base(name, peft_adapter=peft_adapter, **options)
    return _join(adapter, base.model, base.fingerprint, loaded, check_base), base.tokenizer


def _join(adapter: str | Path, base: Any, base_fingerprint: str, loaded: Adapter, check_base: bool) -> T3ForCausalLM:
    """Adapter and base as one model; `AdapterError` if the base is not the one that the adapter was fitted on."""
    if check_base:
        check_fitted_on(base_fingerprint, adapter, loaded.config)
    model = T3ForCausalLM(base, loaded.head, loaded.config, loaded.gates)
    model.check_fits()
    return model
