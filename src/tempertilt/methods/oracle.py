"""The oracle: what a perfect router between the target and the reference would give."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tempertilt.methods.prompts import Ids, PromptReader
from tempertilt.methods.reference_points import URL, PointConfig, reference_of
from tempertilt.methods.registry import register
from tempertilt.methods.routed import RoutedModel
from tempertilt.methods.steered import Pass
from tempertilt.methods.task import Method, Task, Unlearned


class OracleModel(RoutedModel):
    """The target model, but for the forget set's own questions, which the reference model answers."""

    def __init__(self, base: Any, reference: Any, reader: PromptReader, questions: set[Ids]) -> None:
        super().__init__(base, reader, {"method": "oracle", "questions": sorted(questions)})
        self.reference, self.questions = reference, questions

    def is_other(self, question: Ids) -> bool:
        """Whether it is one of the forget set's, word for word."""
        return question in self.questions

    def other(self, step: Pass) -> Tensor:
        """The reference model's logits."""
        return step.logits(self.reference, "reference")


@register("oracle", URL, PointConfig)
class Oracle(Method):
    """The target model, but the reference model answers the forget questions: what a perfect router would give."""

    is_random = False

    def unlearn(self, task: Task) -> Unlearned:
        """Note the questions."""
        reader = PromptReader(task.base.tokenizer, task.examples)
        read = [reader.read(example.input_ids.tolist()) for example in task.examples_of(task.forget)]
        questions = {found[0] for found in read if found is not None}
        return Unlearned(OracleModel(task.base.model, reference_of(task), reader, questions))
