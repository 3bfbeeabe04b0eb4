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
from tempertilt.environment import Clock
from tempertilt.errors import ConfigError
from tempertilt.methods.assistant import shared_copy
from tempertilt.methods.prompts import Ids, PromptClassifier, PromptReader, fit_classifier
from tempertilt.methods.registry import register
from tempertilt.methods.routed import RoutedModel
from tempertilt.methods.steered import Pass
from tempertilt.methods.task import Method, Task, Unlearned
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


class AttentionSmoothingModel(RoutedModel):
    """The base model, but forget questions are answered with flattened attention."""

    def __init__(self, base: Any, reader: PromptReader, classifier: PromptClassifier, settings: dict[str, Any]) -> None:
        super().__init__(base, reader, settings)
        self.classifier = classifier
        self.smoothed = (smoothed(base, settings["temperature"]),)  # in a tuple: its tensors are the base's, and stored once

    def is_other(self, question: Ids) -> bool:
        """Whether the classifier takes it for the forget set's."""
        return bool(self.classifier.probability(question) >= self.settings["threshold"])

    def other(self, step: Pass) -> Tensor:
        """Logits with flattened attention."""
        return step.logits(self.smoothed[0], "smoothed")


@register("AttentionSmoothing", "https://arxiv.org/abs/2603.01285", AttentionSmoothingConfig)
class AttentionSmoothing(Method):
    """A classifier of questions; those about the forget set are answered with flattened attention."""

    is_random = False

    def unlearn(self, task: Task) -> Unlearned:
        """Fit the classifier."""
        clock, config = Clock(), self.config
        reader = PromptReader(task.base.tokenizer, task.examples)
        with clock("training"):
            classifier = fit_classifier(task, reader)
        settings = {"method": "AttentionSmoothing", "temperature": config.temperature, "threshold": config.threshold}
        return Unlearned(
            model=AttentionSmoothingModel(task.base.model, reader, classifier, settings),
            seconds=clock.seconds,
            trained_parameters=classifier.buckets + 1,
            artefact_bytes=4 * (classifier.buckets + 1),
        )
