"""ECO: embedding-corrupted prompts (Liu et al., arXiv 2406.07933), with a classifier of the question's tokens."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tempertilt.config.options import Options, option
from tempertilt.methods.classified import ClassifiedModel, ClassifyingMethod
from tempertilt.methods.prompts import PromptClassifier, PromptReader, real_rows
from tempertilt.methods.registry import register
from tempertilt.methods.steered import Pass
from tempertilt.methods.task import Task


@dataclass(frozen=True)
class ECOConfig(Options):
    """Options of ECO."""

    strength: float = option(2.0, "size of the noise, in standard deviations of the embeddings", ge=0)
    threshold: float = option(0.5, "questions that are about the forget set at least so likely are corrupted", gt=0, lt=1)


def noise_of(tokens: Tensor, width: int, seed: int) -> Tensor:
    """Standard normal noise `(N, width)` that depends on the token and the seed alone, so that decoding repeats itself."""
    rows = {}
    for token in tokens.unique().tolist():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {token}".encode()))
        rows[token] = torch.randn(width, generator=generator)
    return torch.stack([rows[token] for token in tokens.tolist()]) if len(tokens) else torch.zeros(0, width)


class ECOModel(ClassifiedModel):
    """The base model, which reads forget questions through noise."""

    def __init__(self, base: Any, reader: PromptReader, classifier: PromptClassifier, settings: dict[str, Any]) -> None:
        super().__init__(base, reader, classifier, settings)
        self.scale = float(base.get_input_embeddings().weight.std()) * settings["strength"]

    def other(self, step: Pass) -> Tensor:
        """Logits of the base that reads the question's tokens with noise on their embeddings."""
        embeddings = self.base.get_input_embeddings()(step.tokens[:, -step.new :])
        corrupted = torch.zeros_like(step.mask, dtype=torch.bool)
        for row, (ids, where) in enumerate(real_rows(step.tokens, step.mask)):
            corrupted[row, where] = torch.tensor(self.reader.in_question(ids), device=corrupted.device)
        chosen = corrupted[:, -step.new :]
        tokens = step.tokens[:, -step.new :][chosen].cpu()
        noise = noise_of(tokens, embeddings.shape[-1], self.settings["seed"]).to(embeddings)
        embeddings = embeddings.clone()
        embeddings[chosen] += self.scale * noise
        return step.logits(self.base, "corrupted", inputs_embeds=embeddings)


@register("ECO", "https://arxiv.org/abs/2406.07933", ECOConfig)
class ECO(ClassifyingMethod):
    """A classifier of questions; those about the forget set are read through noise on their embeddings."""

    def model(self, task: Task, reader: PromptReader, classifier: PromptClassifier) -> ECOModel:
        """The base that reads forget questions through noise."""
        config = self.config
        settings = {"method": "ECO", "strength": config.strength, "threshold": config.threshold, "seed": task.seed}
        return ECOModel(task.base.model, reader, classifier, settings)
