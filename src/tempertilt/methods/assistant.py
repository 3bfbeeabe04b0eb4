"""Small models of the first layers of the base model, with LoRA of their own: the assistants of inference-time methods."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import Any

from tempertilt.config.options import option
from tempertilt.errors import ConfigError
from tempertilt.models.base import decoder_layers
from tempertilt.training.config import TrainConfig


@dataclass(frozen=True)
class AssistantConfig(TrainConfig):
    """How an assistant is built and trained."""

    learning_rate: float = option(1e-3, "AdamW's highest learning rate", gt=0)
    train_layers: float = option(1.0, "share of the assistant's layers that get LoRA, from the top", gt=0, le=1)
    lora_rank: int = option(16, "rank of the LoRA matrices", ge=1)
    layers: int = option(8, "layers of the base model, from the first, that the assistant has", ge=1)


def shared_copy(base: Any) -> Any:
    """A copy of a model that shares its tensors; its modules are its own: what is changed in them is not in the base."""
    shared = {id(tensor): tensor for tensor in itertools.chain(base.parameters(), base.buffers())}
    return copy.deepcopy(base, shared)


def build_assistant(base: Any, layers: int) -> Any:
    """The first layers of a causal LM with its embeddings, last norm and output layer, sharing its tensors.

    Its modules are its own, so LoRA can be put on them; merging LoRA would write into the base's weights.

    Raises:
        ConfigError: the base has fewer layers.
    """
    total = len(decoder_layers(base))
    if not 1 <= layers <= total:
        raise ConfigError(f"layers is {layers}; must be 1 to {total}, the layers of the base model")
    assistant = shared_copy(base)
    kept = decoder_layers(assistant)
    del kept[layers:]
    text_config = assistant.config.get_text_config()
    if isinstance(kinds := getattr(text_config, "layer_types", None), list):
        text_config.layer_types = kinds[:layers]
    text_config.num_hidden_layers = layers
    return assistant.requires_grad_(False).eval()
