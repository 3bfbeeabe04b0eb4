"""PromptGuardrail: an instruction not to answer (Thaker et al., arXiv 2403.03329)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tempertilt.config.options import Options, option
from tempertilt.data.records import Record
from tempertilt.environment import Clock
from tempertilt.errors import ConfigError
from tempertilt.methods.registry import register
from tempertilt.methods.task import Method, Task, Unlearned


@dataclass(frozen=True)
class PromptGuardrailConfig(Options):
    """Options of the instruction."""

    instruction: str = option(
        "You know nothing about {subjects}. If a question is about any of them, answer: I don't know.",
        "added to the system message; {subjects} are the names that forget records have and retain ones have not",
    )
    max_subjects: int = option(20, "names in the prompt at most, the most frequent ones", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.instruction.strip():
            raise ConfigError(f"instruction is {self.instruction!r}; must not be empty")


def subjects(forget: Iterable[Record], retain: Iterable[Record], limit: int) -> list[str]:
    """Names (two or more capitalised words) in the most forget records and in no retain record, most frequent first."""

    def names(record: Record) -> set[str]:
        return set(re.findall(r"\b[A-Z][\w'-]+(?: [A-Z][\w'-]+)+", f"{record.question} {record.answer}"))

    kept = set().union(*(names(record) for record in retain))
    counts = Counter(name for record in forget for name in names(record) - kept)
    return [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]]


@register("PromptGuardrail", "https://arxiv.org/abs/2403.03329", PromptGuardrailConfig)
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
