"""Methods that act where a classifier of questions says so: what ECO, AttentionSmoothing and InputFilter share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from tempertilt.environment import Clock
from tempertilt.methods.prompts import Ids, PromptClassifier, PromptReader, fit_classifier
from tempertilt.methods.routed import RoutedModel
from tempertilt.methods.task import Method, Task, Unlearned


class ClassifiedModel(RoutedModel):
    """The base model, but another model answers questions that a classifier takes for the forget set's.

    Args:
        settings: with a `threshold`, the least P(forget | question) of these.
    """

    def __init__(self, base: Any, reader: PromptReader, classifier: PromptClassifier, settings: dict[str, Any]) -> None:
        super().__init__(base, reader, settings)
        self.classifier = classifier

    def is_other(self, question: Ids) -> bool:
        """Whether the classifier takes it for the forget set's."""
        return bool(self.classifier.probability(question) >= self.settings["threshold"])


class ClassifyingMethod(Method):
    """A method that fits a classifier of questions and nothing else."""

    @abstractmethod
    def model(self, task: Task, reader: PromptReader, classifier: PromptClassifier) -> Any:
        """The model that acts where the classifier says so."""

    def unlearn(self, task: Task) -> Unlearned:
        """Fit the classifier."""
        clock, reader = Clock(), PromptReader(task.base.tokenizer, task.examples)
        with clock("training"):
            classifier = fit_classifier(task, reader)
        parameters = classifier.buckets + 1
        model = self.model(task, reader, classifier)
        return Unlearned(model, clock.seconds, trained_parameters=parameters, artefact_bytes=4 * parameters)
