"""InputFilter: questions that are about the forget set get a refusal (Thaker et al., arXiv 2403.03329)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tempertilt.config.options import option
from tempertilt.methods.classified import ClassifyingMethod
from tempertilt.methods.prompts import PromptClassifier, PromptReader
from tempertilt.methods.refusing import FilterConfig, RefusingModel, refusal_ids
from tempertilt.methods.registry import register
from tempertilt.methods.task import Task


@dataclass(frozen=True)
class InputFilterConfig(FilterConfig):
    """Options of the filter of prompts."""

    threshold: float = option(0.5, "questions that are about the forget set at least so likely are refused", gt=0, lt=1)


class InputFilterModel(RefusingModel):
    """Refuses questions that a classifier takes for the forget set's."""

    def __init__(
        self, base: Any, refusal: Sequence[int], settings: dict[str, Any], reader: PromptReader, of: PromptClassifier
    ) -> None:
        super().__init__(base, refusal, settings)
        self.reader, self.classifier = reader, of

    def starts(self, ids: Sequence[int]) -> int | None:
        """The answer's first token, where the question is refused."""
        found = self.reader.read(ids)
        return found[1] if found and self.classifier.probability(found[0]) >= self.settings["threshold"] else None


@register("InputFilter", "https://arxiv.org/abs/2403.03329", InputFilterConfig)
class InputFilter(ClassifyingMethod):
    """A classifier of questions; those about the forget set get a refusal."""

    is_random = False

    def model(self, task: Task, reader: PromptReader, classifier: PromptClassifier) -> InputFilterModel:
        """The base behind the filter."""
        config = self.config
        settings = {"method": "InputFilter", "threshold": config.threshold, "smoothing": config.smoothing}
        refusal = refusal_ids(config.refusal, task.base.tokenizer)
        return InputFilterModel(task.base.model, refusal, settings, reader, classifier)
