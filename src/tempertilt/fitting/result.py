"""What a fit gives: the unlearned model, how it was made, what changed, and the report of all of it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tempertilt.environment import environment
from tempertilt.fitting.before_after import BeforeAfter
from tempertilt.fitting.calibrate import Calibration
from tempertilt.fitting.features import ExtractionStats
from tempertilt.fitting.fit_gates import GatesFit
from tempertilt.fitting.fit_head import FitResult, MatchResult
from tempertilt.models.t3 import T3ForCausalLM

REPORT = "unlearn.json"
MADE = ("extraction", "fit", "gate", "estimate", "calibration", "rehearsal")  # parts of it that tell how the adapter was made


@dataclass(frozen=True)
class UnlearnResult:
    """The unlearned model and how it was made. `fit` and `extraction` are None where a finished adapter was reused.

    `gate` and `calibration` are None where there is none, or for a reused adapter.
    """

    model: T3ForCausalLM
    directory: Path
    reused: bool
    extraction: ExtractionStats | None
    fit: FitResult | MatchResult | None
    changes: BeforeAfter
    seconds: dict[str, float]
    gate: GatesFit | None = None
    calibration: Calibration | None = None
    estimate: dict[str, Any] | None = None
    rehearsal: dict[str, Any] | None = None

    def report(self) -> dict[str, Any]:
        """What `unlearn.json` holds."""
        facts = self.changes.facts
        return {
            "reused": self.reused,
            "seconds": self.seconds,
            "extraction": asdict(self.extraction) if self.extraction else None,
            "fit": self.fit.summary() if self.fit else None,
            "gate": self.gate.summary() if self.gate else None,
            "estimate": self.estimate,
            "calibration": self.calibration._asdict() if self.calibration else None,
            "likelihood": {name: asdict(summary) for name, summary in self.changes.summaries.items()},
            "answers": [asdict(item) for item in self.changes.shown],
            "facts": facts and {**facts._asdict(), "leaks": [leak._asdict() for leak in facts.leaks]},
            "heard": [heard._asdict() for heard in self.changes.heard],
            "heard_of_others": self.changes.of_others and self.changes.of_others._asdict(),
            "rehearsal": self.rehearsal,
            "environment": environment(),
        }


def whole_report(result: UnlearnResult) -> dict[str, Any]:
    """The report; of a reused adapter with what the old one, or else the adapter itself, says of how it was made."""
    report, path = result.report(), result.directory / REPORT
    if not result.reused:
        return report
    made = dict(result.model.adapter_config.training)
    if path.is_file():
        with suppress(ValueError, TypeError):  # damaged
            made |= json.loads(path.read_text(encoding="utf-8"))
    return report | {name: made.get(name) for name in MADE if report[name] is None}
