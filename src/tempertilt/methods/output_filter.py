"""OutputFilter: answers are cut off where they repeat a forget answer (Thaker et al., arXiv 2403.03329)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tempertilt.config.options import option
from tempertilt.environment import Clock
from tempertilt.methods.prompts import Ids, PromptReader
from tempertilt.methods.refusing import FilterConfig, RefusingModel, refusal_ids
from tempertilt.methods.registry import register
from tempertilt.methods.task import Method, Task, Unlearned


@dataclass(frozen=True)
class OutputFilterConfig(FilterConfig):
    """Options of the filter of answers."""

    ngram: int = option(4, "tokens in a row of a forget answer after which an answer is cut off", ge=1)


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


@register("OutputFilter", "https://arxiv.org/abs/2403.03329", OutputFilterConfig)
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
