"""The models that a server offers by name: adapters on one base model, and the base itself if the operator says so."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.data.records import Message
from tempertilt.errors import ConfigError, DataError
from tempertilt.models.adapter import load_adapter
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.generation import stop_ids
from tempertilt.models.limits import check_text, embedding_rows, positions
from tempertilt.models.replies import make_reply
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.serving.decoder import Decoder
from tempertilt.serving.names import BASE
from tempertilt.serving.textstream import decode

DEFAULT_LENGTH = 2048  # for models whose configuration has no number of positions


@dataclass(frozen=True)
class ServedModel:
    """A model by a name that requests use.

    Attributes:
        name: of the model.
        decoder: for the engine.
        max_model_len: tokens of prompt and answer together.
        vocab_size: token ids are below it.
        examples: how chats become token ids: as when the adapter was fitted.
        version: of the ledger whose parts it has; None without one.
    """

    name: str
    decoder: Decoder
    max_model_len: int
    vocab_size: int
    examples: ExampleConfig
    encoder: Any  # tokenizers of their own, because the decoder's is in use on another thread: this one for prompts,
    reader: Any  # and this one on the thread of the event loop
    version: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    _encoding: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def adapter(self) -> Any:
        """The adapter's configuration, or None for the base model."""
        return getattr(self.decoder.model, "adapter_config", None)

    def encode_chat(self, messages: Sequence[Message], names: Sequence[str]) -> list[int]:
        """Token ids of messages, ready for the answer; `DataError`, with the message's name, if they can't be."""
        with self._encoding:
            for message, name in zip(messages, names):
                check_text(self.decoder.model, self.encoder, message.content, name)
            return encode_question(messages, self.encoder, self.examples)

    def encode_text(self, text: str, control_tokens: bool) -> list[int]:
        """Token ids of a text; of the empty one the beginning-of-sequence token.

        Args:
            text: of a prompt.
            control_tokens: whether a control token that the text spells is that token, or its characters.

        Raises:
            DataError: there is none, or the text spells a token that the model has no embedding for.
        """
        encoder, ends = self.encoder, control_tokens and text.endswith(self.encoder.eos_token or "")
        with self._encoding:
            check_text(self.decoder.model, encoder, text, "prompt")
            ids = list(encoder(text, split_special_tokens=not control_tokens, verbose=False)["input_ids"]) if text else []
        if len(ids) > 1 and ids[-1] == encoder.eos_token_id and not ends:
            ids.pop()  # some tokenizers close every text
        if not ids and encoder.bos_token_id is not None:
            ids = [encoder.bos_token_id]
        if not ids:
            raise DataError("the prompt has no tokens; must be a text with some")
        return ids

    def token(self, token_id: int) -> str:
        """What the tokenizer calls a token, in brackets; nothing if it has none of that id."""
        with self._encoding:
            name = self.encoder.convert_ids_to_tokens(token_id)
        return f" ({name!r})" if isinstance(name, str) else ""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        with self._encoding:
            return decode(self.encoder, ids)


def load_models(
    adapters: Mapping[str, str],
    model: str | None,
    peft_adapter: str | None,
    *,
    serve_base: bool = False,
    max_model_len: int = 0,
    check_base: bool = True,
    reply: str | None = None,
    **options: Any,
) -> dict[str, ServedModel]:
    """Load one base model and put every adapter on it.

    Args:
        adapters: directories or hub ids by name.
        model, peft_adapter: the base; None is what the first adapter names.
        serve_base: offer the base model, too.
        max_model_len: tokens of prompt and answer together; 0 is what the model was made for.
        check_base: refuse adapters that were fitted on another base.
        reply: "guess", or a text that is said where a gate is open, instead of what each adapter has; None leaves it.
        options: device, dtype, trust_remote_code, as in `tempertilt.models.base.load_base`.

    Raises:
        AdapterError, ModelError: something can't be loaded, or does not fit together.
        ConfigError: `max_model_len` is more than the model has positions for, or the reply is not one.
    """
    name, peft_adapter = load_adapter(next(iter(adapters.values()))).config.base(model, peft_adapter)
    base = load_base(name, peft_adapter=peft_adapter, **options)
    served, models = serving_on(base, max_model_len), {}
    for name, place in adapters.items():
        unlearned = T3ForCausalLM.from_pretrained(place, base_model=base.model, check_base=check_base)
        if reply is not None:
            unlearned.set_reply(make_reply(reply, base.tokenizer))
        models[name] = served(name, unlearned, ExampleConfig.for_chats(unlearned.adapter_config.system_prompt))
    if serve_base:
        models[BASE] = served(BASE, base.model, next(iter(models.values())).examples)
    return models


def serving_on(base: BaseModel, max_model_len: int = 0) -> Callable[..., ServedModel]:
    """What makes served models on a base, all with its tokenizer: of name, model, how chats are encoded, and version if any.

    Raises:
        ConfigError: `max_model_len` is more than the model has positions for.
    """
    length = _max_model_len(base.model, max_model_len)
    stops = frozenset(stop_ids(base.model, base.tokenizer))
    encoder, reader = copy.deepcopy(base.tokenizer), copy.deepcopy(base.tokenizer)
    vocab_size = embedding_rows(base.model)
    lock = threading.Lock()

    def served(name: str, model: Any, examples: ExampleConfig, version: str | None = None) -> ServedModel:
        decoder = Decoder(model, base.tokenizer, stops)
        return ServedModel(name, decoder, length, vocab_size, examples, encoder, reader, version, _encoding=lock)

    return served


def _max_model_len(model: Any, wanted: int) -> int:
    limit = positions(model)
    if limit and wanted > limit:
        raise ConfigError(f"max_model_len is {wanted}; must be at most {limit}, the positions of the model")
    return wanted or limit or DEFAULT_LENGTH
