"""Guardrails: the model is not touched, its input or output is (Thaker et al., arXiv 2403.03329).

Three of them: an instruction not to answer; a filter that refuses prompts; a filter that cuts answers off.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tempertilt.data.records import Record
from tempertilt.errors import ConfigError
from tempertilt.methods.prompts import Ids, PromptClassifier, PromptReader, real_rows
from tempertilt.methods.registry import register
from tempertilt.methods.steered import Pass, SteeredLM
from tempertilt.methods.task import Clock, Method, Task, Unlearned

URL = "https://arxiv.org/abs/2403.03329"


def refusal_logits(like: Tensor, tokens: Tensor, smoothing: float) -> Tensor:
    """Logits `(N, V)` of laws that give 1 - smoothing to `tokens (N,)` and share the rest among all others.

    A text that the guardrail never lets through is as unlikely as any other of its length; its likelihood is a number.
    """
    rest = math.log(smoothing / (like.shape[-1] - 1))
    return torch.full_like(like, rest).scatter(-1, tokens[:, None], math.log1p(-smoothing))


class RefusingModel(SteeredLM):
    """From some position of a sequence on, the tokens of a refusal and nothing else."""

    def __init__(self, base: Any, refusal: Sequence[int], settings: dict[str, Any]) -> None:
        super().__init__(base, settings | {"refusal": list(refusal)})
        self.refusal = list(refusal)

    @abstractmethod
    def starts(self, ids: Sequence[int]) -> int | None:
        """The place in a sequence that the refusal's first token takes, None if there is none yet."""

    def steer(self, logits: Tensor, step: Pass) -> Tensor:
        """The base's law before the refusal starts, the refusal's after."""
        total = step.tokens.shape[1]
        forced = torch.full(step.tokens.shape, -1, dtype=torch.long, device=logits.device)
        for row, (ids, where) in enumerate(real_rows(step.tokens, step.mask)):
            start = self.starts(ids)
            for i in range(len(ids)) if start is not None else ():
                if i + 1 >= start:  # type: ignore[operator]
                    forced[row, where[i]] = self.refusal[min(i + 1 - start, len(self.refusal) - 1)]  # type: ignore[operator]
        kept = step.kept(forced[:, total - step.new :])
        flat, tokens = logits.reshape(-1, logits.shape[-1]), kept.reshape(-1)
        chosen = (tokens >= 0).nonzero().squeeze(-1)
        out = flat.clone()
        out[chosen] = refusal_logits(flat[chosen], tokens[chosen], self.settings["smoothing"])
        return out.reshape(logits.shape)


@dataclass(frozen=True)
class FilterConfig:
    """Options that filters share."""

    refusal: str = field(default="I don't know.", metadata={"help": "what is said instead"})
    smoothing: float = field(default=1e-3, metadata={"help": "probability that the refusal leaves to all other tokens"})

    def __post_init__(self) -> None:
        if not self.refusal.strip():
            raise ConfigError("refusal is empty; valid is a text")
        if not 0 < self.smoothing < 1:
            raise ConfigError(f"smoothing is {self.smoothing}; valid is a number in (0, 1)")


def refusal_ids(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a refusal, with the end of the sequence."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


# --- an instruction --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptGuardrailConfig:
    """Options of the instruction."""

    instruction: str = field(
        default="You know nothing about {subjects}. If a question is about any of them, answer: I don't know.",
        metadata={
            "help": "added to the system message; {subjects} are the names that forget records have and retain ones have not"
        },
    )
    max_subjects: int = field(default=20, metadata={"help": "so many names, the most frequent ones"})

    def __post_init__(self) -> None:
        if self.max_subjects < 1 or not self.instruction.strip():
            raise ConfigError(f"max_subjects is {self.max_subjects}, valid is >= 1; the instruction must not be empty")


def subjects(forget: Iterable[Record], retain: Iterable[Record], limit: int) -> list[str]:
    """Names (two or more capitalised words) in the most forget records and in no retain record, most frequent first."""

    def names(record: Record) -> set[str]:
        return set(re.findall(r"\b[A-Z][\w'-]+(?: [A-Z][\w'-]+)+", f"{record.question} {record.answer}"))

    kept = set().union(*(names(record) for record in retain))
    counts = Counter(name for record in forget for name in names(record) - kept)
    return [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]]


@register("PromptGuardrail", URL, PromptGuardrailConfig)
class PromptGuardrail(Method):
    """An instruction in the system message not to answer about the forget records' names."""

    is_random = False

    def unlearn(self, task: Task) -> Unlearned:
        """Find the names and write the instruction."""
        clock = Clock()
        with clock("reference"):
            found = subjects(task.forget, task.retain, self.config.max_subjects)
            text = self.config.instruction.format(subjects=", ".join(found) or "what was removed")
        system = f"{task.examples.system_prompt} {text}".strip()
        return Unlearned(
            model=task.base.model,
            seconds=clock.seconds,
            artefact_bytes=len(text.encode()),
            examples=replace(task.examples, system_prompt=system),
            details={"system_prompt": system},
        )


# --- a filter of prompts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputFilterConfig(FilterConfig):
    """Options of the filter of prompts."""

    threshold: float = field(
        default=0.5, metadata={"help": "questions that are about the forget set at least so likely are refused"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold is {self.threshold}; valid is a number in (0, 1)")


def fit_classifier(task: Task, reader: PromptReader) -> PromptClassifier:
    """A classifier of the task's questions."""
    sides = []
    for records in (task.forget, task.retain):
        read = [reader.read(example.input_ids.tolist()) for example in task.examples_of(records)]
        sides.append([found[0] for found in read if found is not None])
    if not all(sides):
        raise ConfigError("this method needs records with questions, of both kinds; there are none that can be told apart")
    return PromptClassifier(sides[0], sides[1])


class InputFilterModel(RefusingModel):
    """Refuses questions that a classifier takes for the forget set's."""

    def __init__(self, base: Any, refusal: Sequence[int], settings: dict[str, Any], reader: PromptReader, of: Any) -> None:
        super().__init__(base, refusal, settings)
        self.reader, self.classifier = reader, of

    def starts(self, ids: Sequence[int]) -> int | None:
        """The answer's first token, where the question is refused."""
        found = self.reader.read(ids)
        return found[1] if found and self.classifier.probability(found[0]) >= self.settings["threshold"] else None


@register("InputFilter", URL, InputFilterConfig)
class InputFilter(Method):
    """A classifier of questions; those about the forget set get a refusal."""

    is_random = False

    def unlearn(self, task: Task) -> Unlearned:
        """Fit the classifier."""
        clock, config = Clock(), self.config
        reader = PromptReader(task.base.tokenizer, task.examples)
        with clock("training"):
            classifier = fit_classifier(task, reader)
        settings = {"method": "InputFilter", "threshold": config.threshold, "smoothing": config.smoothing}
        refusal = refusal_ids(config.refusal, task.base.tokenizer)
        return Unlearned(
            model=InputFilterModel(task.base.model, refusal, settings, reader, classifier),
            seconds=clock.seconds,
            trained_parameters=classifier.buckets + 1,
            artefact_bytes=4 * (classifier.buckets + 1),
        )


# --- a filter of answers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OutputFilterConfig(FilterConfig):
    """Options of the filter of answers."""

    ngram: int = field(default=4, metadata={"help": "an answer is cut off after so many tokens in a row of a forget answer"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ngram < 1:
            raise ConfigError(f"ngram is {self.ngram}; valid is a whole number >= 1")


def grams(ids: Sequence[int], n: int) -> set[Ids]:
    """The runs of `n` tokens."""
    return {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}


class OutputFilterModel(RefusingModel):
    """Cuts an answer off after a run of tokens that only forget answers have, and goes on with a refusal."""

    def __init__(
        self, base: Any, refusal: Sequence[int], settings: dict[str, Any], reader: PromptReader, blocked: set[Ids]
    ) -> None:
        super().__init__(base, refusal, settings | {"blocked": sorted(blocked)})
        self.reader, self.blocked = reader, blocked

    def starts(self, ids: Sequence[int]) -> int | None:
        """The token after the first blocked run in the answer; a run that has gone on into a refusal counts from where it was."""
        found, n = self.reader.read(ids), self.settings["ngram"]
        if found is None:
            return None
        return next((at + n for at in range(found[1], len(ids) - n + 1) if tuple(ids[at : at + n]) in self.blocked), None)


@register("OutputFilter", URL, OutputFilterConfig)
class OutputFilter(Method):
    """Answers are cut off after a few tokens in a row that only forget answers have."""

    is_random = False

    def unlearn(self, task: Task) -> Unlearned:
        """List the runs."""
        clock, config = Clock(), self.config
        with clock("reference"):
            blocked, kept = (
                set().union(*(grams(e.input_ids[e.scored].tolist(), config.ngram) for e in task.examples_of(records)))
                for records in (task.forget, task.retain)
            )
            blocked -= kept
        settings = {"method": "OutputFilter", "ngram": config.ngram, "smoothing": config.smoothing}
        refusal = refusal_ids(config.refusal, task.base.tokenizer)
        reader = PromptReader(task.base.tokenizer, task.examples)
        return Unlearned(
            model=OutputFilterModel(task.base.model, refusal, settings, reader, blocked),
            seconds=clock.seconds,
            artefact_bytes=4 * config.ngram * len(blocked),
            details={"blocked": len(blocked)},
        )
