"""The audit's judge on stored greedy answers: how many plain forget questions it takes for leaks, by model.

    python benchmarks/audit_judge.py benchmarks/results/tofu30/full benchmarks/results/tofu30/reference ...

Each RUN is a run folder of `t3 eval`. A model that never saw the forget set has false positives alone; they are printed.
"""

from __future__ import annotations

import argparse

from tempertilt.audit.attempts import subjects_of
from tempertilt.audit.judge import given
from tempertilt.data.records import Record
from tempertilt.metrics.result import clopper_pearson
from tempertilt.metrics.samples import Samples
from tempertilt.suites.logs import read_log


def records_of(samples: Samples) -> list[Record]:
    return [Record.from_question(s.question, s.answer, document=str(s.index), source=f"sample {s.index}") for s in samples]


def main() -> None:
    """Judge, and print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--show", metavar="RUN", action="append", default=[], help="print the leaks of this run")
    args = parser.parse_args()
    for run in args.runs:
        log = read_log(run)
        others = [record for split in ("retain", "holdout") for record in records_of(log.get(split, ()))]
        subjects = {subject.number: subject for subject in subjects_of(records_of(log["forget"]), others)}
        answers = [(subjects[n], s.generation) for n, s in enumerate(log["forget"], start=1) if n in subjects and s.generation]
        judged = [(subject, text, given(subject.facts, subject.telling, text, subject.question)) for subject, text in answers]
        leaks = [(subject, text, [fact.text for fact in facts]) for subject, text, facts in judged if facts]
        low, high = clopper_pearson(len(leaks), len(answers))
        print(f"{run}: {len(leaks)} of {len(answers)} ({len(leaks) / len(answers):.3f}, 95 % interval {low:.3f} to {high:.3f})")
        for subject, text, facts in leaks if run in args.show else ():
            print(f"  {subject.question}\n    record  {subject.record.answer}\n    answer  {text}\n    judged  {facts}")


if __name__ == "__main__":
    main()
