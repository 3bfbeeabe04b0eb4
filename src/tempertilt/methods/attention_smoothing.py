"""AttentionSmoothing: forget questions are answered with flattened attention (Zare Zade et al., arXiv 2603.01285).

The paper divides the logits of self-attention by a temperature above 1, which flattens attention and loosens what ties words
to facts, and distils the model that does so (the forget-teacher) into the weights, with a retain loss. Here the teacher itself
answers, at inference: a classifier of questions, as ECO's, decides when. So nothing else is trained, retain answers are the
base's wherever the classifier is right, and decoding costs two passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tempertilt.config.options import Options, option
from tempertilt.errors import ConfigError
from tempertilt.methods.assistant import shared_copy
from tempertilt.methods.classified import ClassifiedModel, ClassifyingMethod
from tempertilt.methods.prompts import PromptClassifier, PromptReader
from tempertilt.methods.registry import register
from tempertilt.methods.steered import Pass
from tempertilt.methods.task import Task
from tempertilt.models.base import decoder_layers


@dataclass(frozen=True)
class AttentionSmoothingConfig(Options):
    """Options of attention smoothing."""

    temperature: float = option(2.0, "what the logits of attention are divided by; 1 = unchanged", ge=1)
    threshold: float = option(0.5, "questions that are about the forget set at least so likely get it", gt=0, lt=1)


def smoothed(base: Any, temperature: float) -> Any:
    """A model that shares the base's tensors, the logits of its self-attention divided by `temperature`.

    Raises:
        ConfigError: a layer of the base has no attention whose scale can be set.
    """
    model = shared_copy(base)
    for layer in decoder_layers(model):
        scaled: list[Any] = [module for module in layer.modules() if isinstance(getattr(module, "scaling", None), float)]
        if not scaled:
            raise ConfigError(f"{type(base).__name__} has layers without an attention whose scale can be set: not for this model")
        for module in scaled:
            module.scaling /= temperature
    return model


class AttentionSmoothingModel(ClassifiedModel):
    """The base model, but forget questions are answered with flattened attention."""

    def __init__(self, base: Any, reader: PromptReader, classifier: PromptClassifier, settings: dict[str, Any]) -> None:
        super().__init__(base, reader, classifier, settings)
        self.smoothed = (smoothed(base, settings["temperature"]),)  # in a tuple: its tensors are the base's, and stored once

    def other(self, step: Pass) -> Tensor:
        """Logits with flattened attention."""
        return step.logits(self.smoothed[0], "smoothed")


@register("AttentionSmoothing", "https://arxiv.org/abs/2603.01285", AttentionSmoothingConfig)
class AttentionSmoothing(ClassifyingMethod):
    """A classifier of questions; those about the forget set are answered with flattened attention."""

    is_random = False

    def model(self, task: Task, reader: PromptReader, classifier: PromptClassifier) -> AttentionSmoothingModel:
        """The base with flattened attention beside it."""
        settings = {
            "method": "AttentionSmoothing",
            "temperature": self.config.temperature,
            "threshold": self.config.threshold,
        }
        return AttentionSmoothingModel(task.base.model, reader, classifier, settings)
