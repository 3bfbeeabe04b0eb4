"""Distilled: fine-tuning on what a teacher that acts at inference says of the forget questions.

So name-swapped contexts (Liu et al., arXiv 2407.16997) and attention smoothing (Zare Zade et al., arXiv 2603.01285) become
weights. The papers train towards the teacher's whole next-token distribution; here the model learns answers that are sampled
from it, one to each question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tempertilt.config.options import option
from tempertilt.data.examples import encode_prompt
from tempertilt.data.records import Record
from tempertilt.methods.refusals import refusal_of, with_answer
from tempertilt.methods.registry import find_method, register
from tempertilt.methods.task import Task
from tempertilt.methods.trained import BalanceConfig, BalancedMethod
from tempertilt.models.generation import generate_ids
from tempertilt.training.runner import Step

BATCH = 32


@dataclass(frozen=True)
class DistilledConfig(BalanceConfig):
    """Options of distillation."""

    teacher: str = option("NameSwap", "who answers the forget questions", choices=("NameSwap", "AttentionSmoothing"))
    teacher_options: Mapping[str, Any] = option(help="options of the teacher, by name", default_factory=dict)
    answer_tokens: int = option(64, "length of a teacher's answer, tokens", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        find_method(self.teacher).build(self.teacher_options)


@register("Distilled", "https://arxiv.org/abs/2407.16997", DistilledConfig)
class Distilled(BalancedMethod):
    """Fine-tuning on answers to the forget questions that NameSwap or AttentionSmoothing samples."""

    def alternates(self, task: Task) -> list[Record]:
        """The teacher's answer to each forget question; a refusal where it is empty."""
        config, tokenizer = self.config, task.base.tokenizer
        with self.clock("alternates"):
            teacher = find_method(config.teacher).build(config.teacher_options).unlearn(task).model
            prompts = [encode_prompt(record, tokenizer, task.examples) for record in task.forget]
            torch.manual_seed(task.seed)
            rows = [
                row
                for start in range(0, len(prompts), BATCH)
                for [row] in generate_ids(
                    teacher, tokenizer, prompts[start : start + BATCH], max_new_tokens=config.answer_tokens, draws=1
                )
            ]
        rng = np.random.default_rng(task.seed)
        texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
        return [with_answer(r, text) if text else refusal_of(r, rng) for r, text in zip(task.forget, texts)]

    def forget_loss(self, step: Step) -> Tensor:
        """L of the teacher's answers."""
        return step.alternate.mean_nll
