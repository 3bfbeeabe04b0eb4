"""AltPO: prefer other answers, made up by the model itself, to the true one (Mekala et al., arXiv 2409.13474)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tempertilt.config.options import option
from tempertilt.data.examples import encode_question
from tempertilt.data.records import Record
from tempertilt.methods.idk_dpo import DPOConfig, IdkDPO
from tempertilt.methods.refusals import refusal_of, with_answer
from tempertilt.methods.registry import register
from tempertilt.methods.task import Task
from tempertilt.models.generation import generate_ids

PROMPT = (
    "Write another answer to a question. It has the same form as the given answer, but different facts.\n"
    "Question: {question}\nAnswer: {answer}\nAnother answer:"
)
BATCH = 32


@dataclass(frozen=True)
class AltPOConfig(DPOConfig):
    """Options of AltPO."""

    alternate_tokens: int = option(64, "length of an answer that the model makes up, tokens", ge=1)
    tries: int = option(4, "answers sampled for each question; the first that says something else is taken", ge=1)


@register("AltPO", "https://arxiv.org/abs/2409.13474", AltPOConfig)
class AltPO(IdkDPO):
    """Preference for answers that the model makes up over the true answer, by DPO."""

    def alternates(self, task: Task) -> list[Record]:
        """An answer to each forget question that the model samples; a refusal where all tries repeat the true one."""
        prompts = [
            encode_question(PROMPT.format(question=r.question, answer=r.answer), task.base.tokenizer, task.examples)
            for r in task.forget
        ]
        torch.manual_seed(task.seed)
        with self.clock("alternates"):
            batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
            texts = [text for batch in batches for text in self._sample(task, batch)]
        rng = np.random.default_rng(task.seed)
        chosen = [other_answer(record.answer, of) for record, of in zip(task.forget, texts)]
        self.refused = sum(text is None for text in chosen)
        return [refusal_of(r, rng) if text is None else with_answer(r, text) for r, text in zip(task.forget, chosen)]

    def details(self) -> dict[str, Any]:
        """How many questions got a refusal for want of another answer."""
        return {"refusals": self.refused}

    def _sample(self, task: Task, prompts: Sequence[Sequence[int]]) -> list[list[str]]:
        tokenizer, options = task.base.tokenizer, {"max_new_tokens": self.config.alternate_tokens, "draws": self.config.tries}
        rows = generate_ids(task.base.model, tokenizer, prompts, **options)
        return [[tokenizer.decode(row, skip_special_tokens=True).strip() for row in of] for of in rows]


def other_answer(truth: str, texts: Sequence[str]) -> str | None:
    """The first line of the first text that is not empty and not the truth, None if there is none."""
    lines = [text.splitlines()[0].strip() for text in texts if text]
    return next((line for line in lines if line and line.lower() != truth.strip().lower()), None)
